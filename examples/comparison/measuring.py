"""Looking at the episodes that are reported: once for each row, training seed and adaptation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from pyarrow import parquet
from torch import Tensor, nn

from comparison.rows import (
    FITTING_EPISODES,
    QUERIES,
    REGRESSION,
    SHOTS,
    SMAT,
    SMAT_EVEN,
    SMAT_MEAN,
    TUNING_EPISODES,
    WAYS,
)
from smat_peft.assets import DEMO_BACKBONE
from smat_peft.episodes import Episode, ImageCache, load_domain, load_image_transform
from smat_peft.episodes.builtin import ROLES
from smat_peft.episodes.cache import DEFAULT_MEBIBYTES
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.errors import DataError
from smat_peft.evaluation import EvaluationDomain, Predictor, evaluate, mean_expert_weights, prototype_predictor
from smat_peft.evaluation.record_files import record_file
from smat_peft.few_shot import Adaptation
from smat_peft.few_shot.backbone import frozen_features
from smat_peft.few_shot.fine_tuning import KINDS
from smat_peft.few_shot.loading import load_model
from smat_peft.few_shot.regression import frozen_regression
from smat_peft.files import sha256_of
from smat_peft.tuner.tasks import even_mix


@dataclass(frozen=True)
class Look:
    """One look: a row trained with a seed, or the backbone, by one adaptation.

    Attributes:
        name: Of the row.
        seed: Its training seed; None for the backbone.
        folder: Its adapter; None for the backbone.
        kind: The adaptation, one of `SHOTS`.
        episodes: Of each domain.
    """

    name: str
    seed: int | None
    folder: Path | None
    kind: str
    episodes: int

    def __str__(self) -> str:
        return f"{self.name}, {self.kind}" + ("" if self.seed is None else f", seed {self.seed}")

    @property
    def adaptation(self) -> Adaptation:
        """How the support is used."""
        return Adaptation(self.kind if self.kind in KINDS else "prototype")

    @property
    def predictors(self) -> tuple[str, ...]:
        """What is measured on the same episodes: the row, and what is made of the same model."""
        if self.name == SMAT and self.kind == "prototype":
            return (self.name, SMAT_EVEN, SMAT_MEAN)
        return (self.name,) if self.folder or self.adaptation.takes_steps else (self.name, REGRESSION)

    def is_taken(self, results: Path) -> bool:
        """Whether its records are there."""
        return all(file.is_file() for file in self.files(results))

    def files(self, results: Path) -> list[Path]:
        """Where its records are, or will be."""
        folder, kind = records_folder(results, self.kind), self.adaptation.kind
        return [record_file(folder, predictor, self.seed, kind) for predictor in self.predictors]


def refuse_other_counts(results: Path, wanted: Mapping[str, int]) -> None:
    """Refuse records of another number of episodes than is wanted: they could not be paired with those to come.

    Args:
        results: Where records are kept.
        wanted: Episodes of each domain, by adaptation.

    Raises:
        DataError: There are some; it says where, and how many episodes they have.
    """
    domains = sum(map(len, ROLES.values()))
    for kind, episodes in wanted.items():
        for file in sorted(records_folder(results, kind).glob("*.parquet")):
            found = parquet.read_metadata(file).num_rows // domains
            if found != episodes:
                raise DataError(
                    f"{file} holds {found} episodes of each domain, and {episodes} are wanted: ask for {found}, "
                    "choose another --results_dir, or delete all records of that adaptation"
                )


def records_folder(results: Path, kind: str) -> Path:
    """Where the records by an adaptation are kept."""
    return results / kind.replace(" ", "-")


def take_look(look: Look, results: Path, threads: int) -> None:
    """Evaluate on all domains and keep the records in a folder of `results`; what was measured is not again."""
    torch.set_num_threads(threads)
    model, transform = load_model(DEMO_BACKBONE, look.folder), load_image_transform(DEMO_BACKBONE)
    domains = [
        EvaluationDomain(role, load_domain(f"builtin:{name}"), "test" if role == "id" else "all")
        for role, names in ROLES.items()
        for name in names
    ]
    trained_on = [entry.domain for entry in domains if entry.role == "id"]
    takes_steps = look.adaptation.takes_steps
    shape: dict[str, Any] = {"ways": WAYS, "shots": SHOTS[look.kind], "queries": QUERIES, "transform": transform}
    shape["cache"] = ImageCache(DEFAULT_MEBIBYTES)
    count = TUNING_EPISODES if takes_steps else FITTING_EPISODES
    validation = FixedEpisodes(trained_on, "validation", count, seed=1, **shape)
    makers: dict[str, Callable[[], Predictor]] = {
        look.name: lambda: prototype_predictor(model),
        REGRESSION: lambda: regression_predictor(model),
        SMAT_EVEN: lambda: prototype_predictor(model, even_mix(model).weights),
        SMAT_MEAN: lambda: prototype_predictor(model, mean_expert_weights(model, validation)),
    }
    evaluate(
        {name: makers[name]() for name in look.predictors},
        domains,
        episodes=look.episodes,
        adaptation=look.adaptation,
        rate_selection="validation" if takes_steps else "given",
        validation=validation,
        training_seed=look.seed,
        settings={} if look.folder is None else {"adapter": sha256_of(look.folder / SAFETENSORS_WEIGHTS_NAME)},
        output_dir=records_folder(results, look.kind),
        progress=False,
        **shape,
    )


def regression_predictor(model: nn.Module) -> Predictor:
    """Logistic regression on frozen features."""

    def predict(episode: Episode) -> Tensor:
        support, query = (frozen_features(model, images).numpy() for images in (episode.support, episode.query))
        fitted = frozen_regression().fit(support, episode.support_labels.numpy())
        return torch.from_numpy(fitted.predict_log_proba(query))

    return predict
