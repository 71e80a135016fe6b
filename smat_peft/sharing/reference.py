"""The authors' published checkpoints as adapters: the same numbers under our names, experts first (METHOD 12, 13)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Size, Tensor, nn

from smat_peft.errors import CheckpointError, ConfigurationError
from smat_peft.experts.gates import clamp_gates_
from smat_peft.experts.router import Router
from smat_peft.few_shot.loading import load_backbone
from smat_peft.sharing import reference_layout as layout
from smat_peft.sharing.reference_files import ReferenceCheckpoint, read_reference_checkpoint
from smat_peft.sharing.reference_layout import Row
from smat_peft.sharing.reference_names import TORCH_HUB, TRANSFORMERS_4, TRANSFORMERS_5, Naming, recognise
from smat_peft.sharing.reference_report import ConversionReport, make_report
from smat_peft.tuner.adapters import adapter_gates, adapter_router
from smat_peft.tuner.config import SMATConfig
from smat_peft.tuner.features import REFERENCE_FEATURE
from smat_peft.tuner.subsets import adaptable

SAME_WEIGHTS = 1e-2  # relative distance: half precision differs by less, another pre-training by far more


def load_reference_checkpoint(
    path_or_repo: str | Path,
    backbone: str | Path | nn.Module,
    *,
    router_tensors: Mapping[str, Tensor] | None = None,
    mix_evenly: bool = False,
    filename: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> PeftModel:
    """An adapter from one of the authors' checkpoints, which evaluates as their code does.

    It was checked against the layout and golden numbers of the authors' code, not against published accuracies.

    Args:
        path_or_repo: A file, a folder with one, or the name of a repository on the Hub; `.pt` or safetensors.
        backbone: The ViT that the checkpoint was meta-tuned from, transformers' model without a head, or its name.
        router_tensors: What a checkpoint lacks of the expert keys `masks_keys` `[M, D]` and the skill tokens
            `skills_tokens` `[1, 4, D]`.
        mix_evenly: Mix the experts evenly for every task instead of routing.
        filename: Which file of a folder or repository, where it holds several.
        revision: Branch, tag or commit of the repository.
        token: The Hub's token, as its client takes it.

    Returns:
        The backbone with the adapter, in evaluation mode. [`convert_checkpoint`] also says what became of each key.

    Raises:
        CheckpointError: It cannot be read, or is refused because it holds more than tensors; it does not fit the
            backbone, with all that is missing or of another shape; its keys and skill tokens were never saved.
    """
    checkpoint = read_reference_checkpoint(path_or_repo, filename=filename, revision=revision, token=token)
    if not isinstance(backbone, nn.Module):
        backbone = load_backbone(backbone)
    return convert_checkpoint(checkpoint, backbone, router_tensors=router_tensors, mix_evenly=mix_evenly)[0]


def convert_checkpoint(
    checkpoint: ReferenceCheckpoint,
    backbone: Any,
    *,
    router_tensors: Mapping[str, Tensor] | None = None,
    mix_evenly: bool = False,
) -> tuple[PeftModel, ConversionReport]:
    """[`load_reference_checkpoint`] of a checkpoint that was read, with a report of every key."""
    parameters = {part.name: part.parameter for part in adaptable(backbone, "cls")}
    theirs, ours = _namings(checkpoint, parameters)
    given = _given_keys(checkpoint, router_tensors or {}, mix_evenly)
    tensors = {**checkpoint.tensors, **given}
    config = _configuration(tensors[layout.TARGET_SPARSITY], theirs)
    rows = layout.match_parameters(tensors, theirs, parameters, ours)
    router = _router_shapes(backbone.config.hidden_size, config.num_experts)
    expected = layout.expected_keys(rows, router, config.num_experts)
    lacking = [key for key in layout.NEVER_SAVED if key not in tensors]

    misfits = layout.misfits(tensors, expected, rows, optional=lacking)
    placed = {name for row in rows for name in row.parts}
    misfits += [f"{name} of the backbone: has no place in the checkpoint" for name in parameters if name not in placed]
    if misfits:
        raise CheckpointError(
            "\n  ".join([f"{checkpoint.source} does not fit the {type(backbone).__name__}:", *misfits])
        )
    if lacking and not mix_evenly:
        raise CheckpointError(
            f"{checkpoint.source} has no {' and no '.join(lacking)}: the authors' code never saves them on a CUDA "
            "device, where it draws them anew at each start. Give them as router_tensors, from a run of that code with "
            "its seed, or have the experts mixed evenly (mix_evenly)"
        )
    if mix_evenly:  # keys of zeros give every expert the same score
        tensors |= {key: torch.zeros(expected[key].shape) for key in (layout.KEYS, *lacking)}

    report = make_report(checkpoint, theirs, rows, expected, mix_evenly)
    report.notes.append(_compare_weights(checkpoint, rows))
    report.notes += _notes(config, theirs, backbone)
    model = get_peft_model(backbone, config).eval()
    _fill(model, tensors, rows)
    return model, report


def _namings(checkpoint: ReferenceCheckpoint, parameters: Mapping[str, Tensor]) -> tuple[Naming, Naming]:
    names = [key.removeprefix(layout.NET) for key in checkpoint.tensors if key.startswith(layout.NET)]
    theirs = recognise(names, (TORCH_HUB, TRANSFORMERS_4, TRANSFORMERS_5))
    if theirs is None or layout.TARGET_SPARSITY not in checkpoint.tensors:
        some = ", ".join(list(checkpoint.tensors)[:3]) or "no tensors"
        raise CheckpointError(
            f"{checkpoint.source} is no checkpoint of the authors' code: it must hold a ViT below {layout.NET}* and "
            f"{layout.TARGET_SPARSITY}, and it holds {some}"
        )
    ours = recognise(parameters, (TRANSFORMERS_5, TRANSFORMERS_4))
    if ours is None:
        some = ", ".join(list(parameters)[:3])
        raise ConfigurationError(
            f"the backbone must be transformers' ViT without a head (ViTModel, AutoModel), and has parameters {some}"
        )
    return theirs, ours


def _given_keys(
    checkpoint: ReferenceCheckpoint, router_tensors: Mapping[str, Tensor], mix_evenly: bool
) -> dict[str, Tensor]:
    given = {f"{layout.ROUTER}{name.removeprefix(layout.ROUTER)}": tensor for name, tensor in router_tensors.items()}
    unwanted = [key for key in given if key not in layout.NEVER_SAVED or key in checkpoint.tensors]
    if unwanted:
        raise ConfigurationError(
            f"router_tensors holds {unwanted[0]}; it is for {' and '.join(layout.NEVER_SAVED)} that a checkpoint lacks"
        )
    if given and mix_evenly:
        raise ConfigurationError(
            "router_tensors are for routing, and mix_evenly is for doing without; give one of them"
        )
    return given


def _configuration(target_sparsity: Tensor, naming: Naming) -> SMATConfig:
    """What METHOD states; what is not named here, such as the router's size and temperature, is our default, too."""
    return SMATConfig(
        num_experts=target_sparsity.numel(),
        target_sparsity=round(float(target_sparsity.float().mean()), 6),
        gate_eval="reference",
        router_pooling="first",
        feature=naming.feature,
    )


def _router_shapes(width: int, num_experts: int) -> dict[str, Size]:
    with torch.device("meta"):
        router = Router(width, num_experts)
    return {name: tensor.shape for name, tensor in router.state_dict().items() if name != "episodes_seen"}


def _compare_weights(checkpoint: ReferenceCheckpoint, rows: list[Row]) -> str:
    """How far the backbone is from the one that the checkpoint was meta-tuned from, which it must be."""
    distances = layout.weight_distances(checkpoint.tensors, rows)
    different = [name for name, distance in distances.items() if not distance <= SAME_WEIGHTS]
    if different:
        raise CheckpointError(
            f"{checkpoint.source} was meta-tuned from another backbone: {len(different)} of {len(rows)} parameters "
            f"differ, {different[0]} by {distances[different[0]]:.0%} of its norm; give the one that it was tuned from"
        )
    furthest = max(distances.values())
    return f"The backbone is the one of the checkpoint: no parameter differs by more than {furthest:.0e} of its norm."


def _notes(config: SMATConfig, naming: Naming, backbone: Any) -> Iterator[str]:
    if config.feature == REFERENCE_FEATURE:
        yield "Position embeddings are interpolated by a scale factor, as in the reference."
    norm_eps = backbone.config.layer_norm_eps
    if naming.norm_eps not in (None, norm_eps):
        yield (
            f"Layer norms of {naming.title} add {naming.norm_eps:g} to the variance and this backbone's add "
            f"{norm_eps:g}: features differ by about as much."
        )


@torch.no_grad()
def _fill(model: PeftModel, tensors: Mapping[str, Tensor], rows: list[Row]) -> None:
    adapter = model.active_adapter
    places = {
        layer.full_name(name): (layer.smat_delta[adapter][name], g) for layer, name, g in adapter_gates(model, adapter)
    }
    for row in rows:
        for name, delta in row.split(tensors[f"{layout.DELTA}{row.number}"]):
            places[name][0].copy_(delta)
        for name, gates in row.split(tensors[f"{layout.GATES}{row.number}"]):
            clamp_gates_(places[name][1].copy_(gates.movedim(-1, 0)))  # the reference clamps them before each use
    router = adapter_router(model, adapter)
    assert router is not None
    state = router.state_dict()
    for name, tensor in state.items():
        key = layout.EPISODES_SEEN if name == "episodes_seen" else layout.router_key(name)
        tensor.copy_(tensors[key].reshape(tensor.shape))
