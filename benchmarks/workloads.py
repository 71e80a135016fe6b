"""What is measured: the backbones, an adapter as training leaves it, random episodes, and an update of either side."""

from __future__ import annotations

import argparse
import math
import time

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import ViTConfig, ViTModel

from baseline import Baseline
from smat_peft import Episode, MetaTrainer, MetaTuningArguments, SMATConfig
from smat_peft.assets import DEMO_BACKBONE, demo_backbone
from smat_peft.experts.compiled import COUNTS, compile_passes
from smat_peft.experts.gates import GATE_LIMIT, GateGranularity
from smat_peft.meta_tuning.processes import create_accelerator
from smat_peft.tuner.adapters import active_adapter, adapter_gates

WIDTHS = {"vit-tiny": 192, "vit-small": 384}  # DeiT's, Touvron et al. 2021, table 1; 64 a head
IMAGE_SIZES = {DEMO_BACKBONE: 32}  # pixels; the demo's, and METHOD 1 for the others
VIT_SMALL_SIZE = 21.7e6  # parameters at 224 px
DELTA_STD = 1e-3
PARTIAL_STD = 1.0  # of the logits of gates that are neither open nor closed


def add_model_arguments(parser: argparse.ArgumentParser, model: str) -> None:
    """The arguments that say what an update is of."""
    parser.add_argument("--model", choices=[*WIDTHS, DEMO_BACKBONE], default=model, help="The backbone.")
    parser.add_argument("--layers", type=int, help="Layers of the backbone; all by default.")
    parser.add_argument("--image_size", type=int, help="Pixels; 128 by default, 32 for the demo's backbone.")
    parser.add_argument("--experts", type=int, default=8, help="Experts M.")
    parser.add_argument("--episodes", type=int, default=4, help="Episodes of an update.")
    parser.add_argument("--ways", type=int, default=5, help="Classes of an episode.")
    parser.add_argument("--shots", type=int, default=5, help="Support images of a class.")
    parser.add_argument("--queries", type=int, default=10, help="Query images of a class.")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="Precision of the passes.")
    parser.add_argument("--max_batch_size", type=int, help="Images that go through the backbone at a time; ours only.")
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--noise", action=switch, default=True, help="The authors' gate noise, in the baseline only.")
    add_compile_argument(parser)


def add_compile_argument(parser: argparse.ArgumentParser) -> None:
    """Whether our side is compiled, as it is by itself in a long run."""
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--torch_compile", action=switch, default=True, help="Compile the interpolation on our side.")


def make_backbone(name: str, layers: int | None = None) -> ViTModel:
    """A backbone by its name in [`add_model_arguments`], of random weights."""
    if name == DEMO_BACKBONE:
        config = ViTConfig.from_pretrained(demo_backbone())
    else:
        config = vit_config(WIDTHS[name], heads=WIDTHS[name] // 64)
    config.num_hidden_layers = layers or config.num_hidden_layers
    return ViTModel(config, add_pooling_layer=False).eval()


def with_changes(arguments: argparse.Namespace, **changes: object) -> argparse.Namespace:
    """The same arguments but for some."""
    return argparse.Namespace(**vars(arguments) | changes)


def vit_config(width: int, heads: int) -> ViTConfig:
    """A ViT of 12 layers and 16 px patches, pre-trained at 224 px."""
    return ViTConfig(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def vit_shapes(parameters: float) -> list[torch.Size]:
    """Shapes of the parameters of a ViT-Small whose width is changed to have about so many in all."""
    width = 8 * max(1, round(WIDTHS["vit-small"] * math.sqrt(parameters / VIT_SMALL_SIZE) / 8))
    with torch.device("meta"):
        model = ViTModel(vit_config(width, heads=1), add_pooling_layer=False)
    return [parameter.shape for parameter in model.parameters()]


def make_episodes(arguments: argparse.Namespace, device: torch.device) -> list[Episode]:
    """The episodes of one update, of random pixels."""
    size = arguments.image_size or IMAGE_SIZES.get(arguments.model, 128)
    draws = torch.Generator().manual_seed(arguments.seed)

    def images(per_class: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(arguments.ways).repeat_interleave(per_class)
        return torch.randn(len(labels), 3, size, size, generator=draws), labels

    return [
        Episode(*images(arguments.shots), *images(arguments.queries), index=index).to(device)
        for index in range(arguments.episodes)
    ]


def meta_tuning_arguments(arguments: argparse.Namespace) -> MetaTuningArguments:
    """The method's settings, at full learning rates from the first update."""
    return MetaTuningArguments(
        episodes_per_step=arguments.episodes,
        warmup_steps=0,
        max_batch_size=arguments.max_batch_size,
        torch_compile=arguments.torch_compile,
    )


def seconds_to_compile(arguments: argparse.Namespace, device: torch.device, num_tasks: int) -> float:
    """Compile what training runs, and return the seconds it took: a few where torch has the code on disk."""
    started = time.perf_counter()
    compile_passes("merge", "gradients", *COUNTS, num_experts=arguments.experts, num_tasks=num_tasks, device=device)
    return time.perf_counter() - started


def make_trainer(
    arguments: argparse.Namespace, device: torch.device, granularity: GateGranularity = "element"
) -> MetaTrainer:
    """Our side: a trainer whose `update(episodes)` is one update."""
    model = make_backbone(arguments.model, arguments.layers)
    model = get_peft_model(model, SMATConfig(num_experts=arguments.experts, gate_granularity=granularity))
    precision = {"fp32": "no", "bf16": "bf16"}[arguments.dtype]
    accelerator = create_accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    return MetaTrainer(model, meta_tuning_arguments(arguments), train=[], accelerator=accelerator)


def make_baseline(arguments: argparse.Namespace, device: torch.device) -> Baseline:
    """The other side, likewise."""
    return Baseline(
        make_backbone(arguments.model, arguments.layers).to(device),
        meta_tuning_arguments(arguments),
        num_experts=arguments.experts,
        noise=arguments.noise,
        autocast={"fp32": None, "bf16": torch.bfloat16}[arguments.dtype],
    )


@torch.no_grad()
def copy_state_(baseline: Baseline, trainer: MetaTrainer) -> None:
    """Give the baseline the trainer's backbone, adapter and router."""
    model = trainer.learner.model
    for layer, name, gates in adapter_gates(model, active_adapter(model)):
        full_name = layer.full_name(name)
        baseline.base[full_name].copy_(getattr(layer.get_base_layer(), name))
        baseline.delta[full_name].copy_(layer.smat_delta[trainer.learner.adapter_name][name])
        baseline.gate_logits[full_name].copy_(gates.movedim(0, -1))
    assert trainer.learner.router is not None
    baseline.router.load_state_dict(trainer.learner.router.state_dict())


@torch.no_grad()
def as_trained_(model: PeftModel, sparsity: float = 0.9, partial: float = 0.05) -> None:
    """Values such as training leaves: a delta that is not zero, and gates at their limits, `sparsity` of them closed.

    The share `partial` of all gates is in between instead.
    """
    adapter = active_adapter(model)
    for layer, name, gates in adapter_gates(model, adapter):
        layer.smat_delta[adapter][name].normal_(std=DELTA_STD)
        gates.copy_(torch.where(torch.rand_like(gates) < sparsity, -GATE_LIMIT, GATE_LIMIT))
        gates.copy_(torch.where(torch.rand_like(gates) < partial, PARTIAL_STD * torch.randn_like(gates), gates))
