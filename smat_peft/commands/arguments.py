"""The arguments of meta_tune, beside those of meta-tuning itself; for transformers' `HfArgumentParser`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from smat_peft.assets import DEMO_BACKBONE
from smat_peft.commands.checks import check_trackers, require_at_least
from smat_peft.commands.methods import METHODS
from smat_peft.episodes.draws import DomainWeights
from smat_peft.errors import ConfigurationError
from smat_peft.meta_tuning.arguments import MetaTuningArguments

DATA_ROOT = "{data_root}"
DOMAIN_KINDS = (
    "Kinds: builtin:greek, folder:PATH, 'folder:PATH/*' (a domain a folder), hub:NAME[:CONFIG][@SPLIT], disk:PATH, "
    "parquet:PATTERN, h5:ROOT/SOURCE. Options, as far as a kind takes them: ?image=COLUMN&label=COLUMN&files=FOLDER "
    "(hub, disk, parquet), splits=FILE, augment=crop,colour,mirror|none. Options of its test episodes, for all kinds: "
    "ways=N, shots=N, queries=N, which go before those given for all domains; "
    "classes=test|validation|train|all, by default test of domains that are trained on and all of others; name=NAME "
    f"in tables. {DATA_ROOT} stands for --data_root."
)


@dataclass
class ModelArguments:
    """The backbone and what is learned on it."""

    model_name_or_path: str = field(
        default=DEMO_BACKBONE, metadata={"help": "A vision model of the Hub, a folder, or demo-vit, the packaged one."}
    )
    adapter_name_or_path: str | None = field(
        default=None,
        metadata={"help": "An adapter to go on from, in place of a new one; its own settings then hold."},
    )
    method: str = field(
        default="smat",
        metadata={
            "help": "; ".join(f"{name}: {method.about}" for name, method in METHODS.items()) + ".",
            "choices": list(METHODS),
        },
    )
    num_experts: int = field(default=8, metadata={"help": "Experts, of methods with a router."})
    target_sparsity: float = field(default=0.9, metadata={"help": "Share of gates to close, each expert's own."})
    gate_granularity: str = field(
        default="element", metadata={"help": "A gate per element, or structured: per input column or output channel."}
    )
    gate_init_std: float = field(default=0.5, metadata={"help": "Standard deviation of the first gate logits."})
    gate_eval: str = field(
        default="reference", metadata={"help": "Gates of evaluation: the reference's, or those of train(ing)."}
    )
    router_pooling: str = field(default="mean", metadata={"help": "Task embedding: mean over classes, or first."})
    feature: str = field(default="auto", metadata={"help": "auto, cls, mean, pooler, or a module's path."})


@dataclass
class DataArguments:
    """Where episodes come from, and what is measured on them."""

    train_domains: list[str] = field(
        default_factory=list,
        metadata={"help": f"Domains to meta-tune on. {DOMAIN_KINDS}"},
    )
    dev_ood_domains: list[str] = field(
        default_factory=list, metadata={"help": "Domains not trained on, to look at while choosing settings."}
    )
    ood_domains: list[str] = field(default_factory=list, metadata={"help": "Domains not trained on, to report."})
    domain_weights: list[str] = field(
        default_factory=lambda: ["uniform"],
        metadata={
            "help": "How often each training domain is drawn: uniform, size (its images), or NAME=WEIGHT of each."
        },
    )
    data_root: str = field(default="data", metadata={"help": f"What {DATA_ROOT} in the names of domains stands for."})
    on_bad_image: str = field(
        default="error", metadata={"help": "What to do with an unreadable image.", "choices": ["error", "skip"]}
    )
    image_size: int | None = field(default=None, metadata={"help": "Image size; the image processor's by default."})
    ways: int | None = field(default=None, metadata={"help": "Classes of an episode; varied by default."})
    shots: int | None = field(default=None, metadata={"help": "Support images of a class; varied by default."})
    queries: int = field(default=10, metadata={"help": "Most query images of a class."})
    max_ways: int = field(default=50, metadata={"help": "Most classes of a training episode, where they vary."})
    max_support: int = field(default=500, metadata={"help": "Most support images of a training episode."})
    validation_episodes: int = field(default=120, metadata={"help": "Validation episodes of each domain."})
    evaluation_episodes: int = field(default=600, metadata={"help": "Test episodes of each domain; 0: none."})
    evaluation_ways: int | None = field(default=None, metadata={"help": "Classes of a test episode."})
    evaluation_shots: int | None = field(default=None, metadata={"help": "Support images of a class in test episodes."})
    evaluation_seed: int = field(default=0, metadata={"help": "Seed of the test episodes."})

    def __post_init__(self) -> None:
        require_at_least(self, 2, "ways", "evaluation_ways")
        require_at_least(self, 1, "shots", "evaluation_shots", "queries", "image_size")
        require_at_least(self, 0, "validation_episodes", "evaluation_episodes")
        self.weights_of_domains()

    def weights_of_domains(self) -> DomainWeights:
        """`domain_weights` as [`EpisodeSampler`] takes them."""
        if self.domain_weights == ["uniform"]:
            return "uniform"
        if self.domain_weights == ["size"]:
            return "size"
        try:
            return {name: float(weight) for name, _, weight in (text.rpartition("=") for text in self.domain_weights)}
        except ValueError as error:
            given = " ".join(self.domain_weights)
            raise ConfigurationError(
                f"--domain_weights must be uniform, size, or NAME=WEIGHT for each training domain, got {given!r}"
            ) from error


@dataclass
class LaunchArguments:
    """How the run is done."""

    mixed_precision: str | None = field(
        default=None, metadata={"help": "The launcher's by default.", "choices": ["no", "fp16", "bf16"]}
    )
    replay_episodes: list[int] = field(
        default_factory=list,
        metadata={"help": "Print the losses of training episodes of these numbers, as of the checkpoint; do no more."},
    )
    report_to: list[str] = field(default_factory=list, metadata={"help": "Trackers, such as tensorboard or wandb."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads a process; all cores by default."})
    dry_run: bool = field(default=False, metadata={"help": "Print the plan and stop."})

    def __post_init__(self) -> None:
        require_at_least(self, 1, "threads")
        check_trackers(self.report_to)


@dataclass
class SharingArguments:
    """What becomes of the adapter."""

    save_merged: str | None = field(
        default=None,
        metadata={
            "help": "Leave an ordinary transformers model, too, in OUTPUT_DIR/merged: the backbone, its experts mixed "
            "evenly (even), or for one task, by a folder with a folder of images for each of its classes."
        },
    )
    pack: bool = field(
        default=False,
        metadata={
            "help": "Leave the adapter's inference form, too, in OUTPUT_DIR/packed: a fraction of its size, loaded "
            "like any adapter, and not to be trained."
        },
    )
    push_to_hub: bool = field(
        default=False,
        metadata={
            "help": "Push adapter, card, figures and curves to the Hub at the end, and a packed adapter and a merged "
            "model to repositories of their own, HUB_MODEL_ID-packed and HUB_MODEL_ID-merged."
        },
    )
    hub_model_id: str | None = field(
        default=None,
        metadata={"help": "Repository, NAME or USER/NAME; the name of the output directory by default."},
    )
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "Whether a new repository is private; the owner's default if not given."}
    )
    hub_token: str | None = field(default=None, metadata={"help": "Token; the one of `hf auth login` by default."})
    hub_revision: str | None = field(default=None, metadata={"help": "Branch to push to; the main one by default."})
    license: str | None = field(
        default=None, metadata={"help": "Licence for the model card, as the Hub spells it, such as apache-2.0."}
    )
    datasets: list[str] = field(
        default_factory=list, metadata={"help": "Data sets for the model card, by their names on the Hub."}
    )


class Arguments(NamedTuple):
    """All arguments of a run."""

    meta_tuning: MetaTuningArguments
    model: ModelArguments
    data: DataArguments
    launch: LaunchArguments
    sharing: SharingArguments
