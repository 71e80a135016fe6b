"""Bytes of an adapter in each form, and how fast a task is merged from the packed one.

    python benchmarks/size.py --adapter outputs/demo

For a ViT-Small adapter as training leaves it (90 % of the gates closed, 5 % in between, seeded) and for an adapter of
the packaged backbone, where one is named: the authors' training checkpoint and its weights alone (METHOD 9), the
adapter that can be trained, packed without loss, packed, a bf16 dense delta, the fp16 backbone, and PEFT's LoRA of rank
8. "ours" is the packed adapter, whole files with their routers; the limit is a bf16 delta and one bit a gate. Merging
is compared with that from the adapter that can be trained, as it is and with generated code. A named adapter also
classifies episodes of the built-in dev-OOD domains in both forms; how many answers differ is printed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from tqdm import tqdm

from measure import Row, compare, interleave, make_parser, report, start
from smat_peft import SMATConfig, pack_adapter
from smat_peft.assets import DEMO_BACKBONE
from smat_peft.episodes import load_domain, load_image_transform
from smat_peft.episodes.builtin import ROLES
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.evaluation import prototype_predictor
from smat_peft.experts.compiled import forget_compiled_passes
from smat_peft.experts.router import even_weights
from smat_peft.few_shot import load_model
from smat_peft.few_shot.lora import lora_settings
from smat_peft.tuner.adapters import adapted_size, adapter_config, adapter_router, smat_layers
from smat_peft.tuner.merging import merge_layers
from smat_peft.tuner.tasks import compile_interpolation
from workloads import WIDTHS, add_compile_argument, as_trained_, make_backbone

FULL, HALF = 4, 2  # bytes of a number
EPISODES = 200
PACKED = "packed"  # name of the packed adapter beside the one that it is made of


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser(__doc__, rounds=15)
    parser.add_argument("--model", choices=[*WIDTHS, DEMO_BACKBONE], default="vit-small", help="The backbone.")
    parser.add_argument("--layers", type=int, help="Layers of the backbone; all by default.")
    parser.add_argument("--experts", type=int, default=8, help="Experts M.")
    parser.add_argument("--adapter", type=Path, help="Folder of an adapter of the packaged backbone.")
    add_compile_argument(parser)
    arguments = parser.parse_args(argv)
    device = start(arguments)

    rows, errors = [], {}
    for name, model in measured(arguments):
        more, errors[f"logit_error_{name}"] = rows_of(name, model.to(device).eval(), arguments, device)
        rows += more
        if name != arguments.model:
            print(f"{name}: {answers_that_differ(model)}")
    if arguments.adapter is None:
        print("no --adapter, so that of the packaged backbone is not measured")
    report(rows, arguments, **errors)


def measured(arguments: argparse.Namespace) -> Iterator[tuple[str, PeftModel]]:
    """The adapters, by their names in the table."""
    backbone = make_backbone(arguments.model, arguments.layers)
    model = get_peft_model(backbone, SMATConfig(num_experts=arguments.experts))
    as_trained_(model)
    yield arguments.model, model
    if arguments.adapter is not None:
        adapter = load_model(DEMO_BACKBONE, arguments.adapter)
        assert isinstance(adapter, PeftModel)
        yield arguments.adapter.name, adapter


def rows_of(
    name: str, model: PeftModel, arguments: argparse.Namespace, device: torch.device
) -> tuple[list[Row], float]:
    """The rows of an adapter, and by how much the packed one's logits differ from its own."""
    with tempfile.TemporaryDirectory() as folder:
        trainable, lossless, packed = f"{folder}/trainable", f"{folder}/lossless", f"{folder}/packed"
        model.save_pretrained(trainable, save_embedding_layers=False)
        pack_adapter(model, lossless, lossless=True)
        error = pack_adapter(model, packed)["logit_error"]
        model.load_adapter(packed, PACKED)
        sizes = {
            **without_files(model),
            "trainable": bytes_of(trainable),
            "packed, lossless": bytes_of(lossless),
            "LoRA, r = 8": bytes_of_lora(model, f"{folder}/lora"),
        }
        ours = bytes_of(packed) / 1e6
    rows = [compare(f"{name}: {form}", [ours], [size / 1e6], unit="MB") for form, size in sizes.items()]
    limit = adapted_size(model) * (HALF + adapter_config(model).num_experts / 8) / 1e6
    rows.append(compare(f"{name}: bf16 delta and a bit a gate", [ours], [limit], unit="MB", ratio_is="ours / baseline"))
    rows.append(merging_row(f"{name}: merging", model, arguments, device))
    if arguments.torch_compile and compile_interpolation(model):
        rows.append(merging_row(f"{name}: merging, trainable compiled", model, arguments, device))
        forget_compiled_passes()
    return rows, error


def answers_that_differ(model: PeftModel) -> str:
    """What changes where the packed adapter, loaded beside its own, classifies in its place."""
    domains = [load_domain(f"builtin:{name}") for name in ROLES["dev_ood"]]
    shape: dict[str, Any] = {"ways": 5, "shots": 1, "queries": 5, "transform": load_image_transform(DEMO_BACKBONE)}
    episodes = FixedEpisodes(domains, "all", EPISODES // len(domains), seed=0, **shape)
    answers = {}
    for adapter in ("default", PACKED):
        model.set_adapter(adapter, inference_mode=True)
        predict = prototype_predictor(model)
        with torch.no_grad():
            answers[adapter] = torch.cat([predict(episode).logits for episode in tqdm(episodes, desc=adapter)])
    model.set_adapter("default", inference_mode=True)
    different = (answers["default"].argmax(1) != answers[PACKED].argmax(1)).sum().item()
    largest = (answers["default"] - answers[PACKED]).abs().max().item()
    total = f"{len(answers[PACKED])} answers of {len(episodes)} episodes"
    return f"{different} of {total} differ, logits by {largest:.2g} at most"


def without_files(model: PeftModel) -> dict[str, int]:
    """Bytes of forms that are known without being written; a checkpoint of the authors as METHOD 9 lists it."""
    size, router = adapted_size(model), adapter_router(model)
    assert router is not None
    delta = backbone = momentum = FULL * size
    gates = delta * adapter_config(model).num_experts
    weights = backbone + delta + gates + sum(tensor.nbytes for tensor in router.state_dict().values())
    return {
        "the authors' training checkpoint": weights + momentum,
        "its weights alone": weights,
        "dense delta, bf16": HALF * size,
        "backbone, fp16": HALF * size,
    }


def bytes_of_lora(model: PeftModel, folder: str) -> int:
    """Bytes of PEFT's LoRA of a backbone like the model's, as METHOD 11 sets it up."""
    backbone = type(model.get_base_model())(model.get_base_model().config, add_pooling_layer=False)
    get_peft_model(backbone, LoraConfig(**lora_settings(backbone))).save_pretrained(folder, save_embedding_layers=False)
    return bytes_of(folder)


def bytes_of(folder: str) -> int:
    """Bytes of the adapter in a folder."""
    return Path(folder, SAFETENSORS_WEIGHTS_NAME).stat().st_size


def merging_row(name: str, model: PeftModel, arguments: argparse.Namespace, device: torch.device) -> Row:
    """A merge from the packed form against one from the form that can be trained, each into tensors of an earlier."""
    layers, weights = smat_layers(model), even_weights(adapter_config(model).num_experts, device).weights

    def merge(adapter: str) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return merge_layers(layers, adapter, weights, reuse[adapter], keep_gates=False)

    reuse: dict[str, dict[str, torch.Tensor]] = {PACKED: {}, "default": {}}
    reuse = {adapter: merge(adapter) for adapter in reuse}
    sides = {adapter: lambda adapter=adapter: merge(adapter) for adapter in reuse}
    measured = interleave(sides, device, rounds=arguments.rounds, warmup=arguments.warmup)
    return compare(name, measured[PACKED][""], measured["default"][""])


if __name__ == "__main__":
    main()
