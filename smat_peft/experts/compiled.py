"""The interpolation's passes as generated loops: `torch.compile` makes one loop over all experts and tasks.

Compiling takes from ten seconds to a minute, so it is done when it is asked for, not in the middle of a run; torch
keeps the result on disk. Sizes of parameters may differ; the numbers of experts and tasks, device and types may not.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from smat_peft.experts.gates import (
    EVAL_TEMPERATURE,
    EXPECTED_L0_SHIFT,
    STRETCH_HIGH,
    STRETCH_LOW,
    TRAIN_TEMPERATURE,
    kept_type,
)

logger = logging.getLogger(__name__)

MIN_SIZE = 4096  # scalars of a parameter; for fewer, a call of generated code costs more than the work

Merge = Literal["merge", "merge_values", "gradients"]
Count = Literal["open_gates", "expected_open_gates", "expected_gradient"]
COUNTS: tuple[Count, ...] = get_args(Count)


class _Settings(NamedTuple):
    kind: Merge | Count
    num_experts: int
    num_tasks: int  # 0: the pass is over the gates alone
    device: str
    dtype: torch.dtype  # of the base; deltas and logits are float32


_generated: dict[_Settings, Callable[..., Any]] = {}


def compile_passes(
    *kinds: Merge | Count,
    num_experts: int,
    num_tasks: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> bool:
    """Generate passes for parameters of any size; from then on they are used wherever they fit.

    Args:
        kinds: `"merge"` from gate logits and its `"gradients"`, as in training; `"merge_values"` from kept gate values;
            [`COUNTS`] for the sparsity constraint.
        num_experts: M.
        num_tasks: Tasks E that are merged together.
        device: Where the parameters are.
        dtype: Type of the pre-trained parameters.

    Returns:
        Whether they are there. Without a compiler, a warning says so, and the same is computed without it.
    """
    device = torch.device(device)
    wanted = [
        _Settings(kind, num_experts, 0, device.type, torch.float32)
        if kind in COUNTS
        else _Settings(kind, num_experts, num_tasks, device.type, dtype)
        for kind in kinds
    ]
    missing = [settings for settings in wanted if settings not in _generated]
    if not missing:
        return True
    logger.warning(
        "compiling the interpolation of %d experts, once: up to a minute, less where torch has it", num_experts
    )
    started = time.perf_counter()
    try:
        made = {settings: _generate(settings, device) for settings in missing}
    except Exception as error:  # torch's compiler has no single kind of error: a missing C++ compiler is one of many
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        warnings.warn(f"the interpolation is not compiled, and slower for it: {reason}", stacklevel=2)
        return False
    _generated.update(made)
    logger.warning("compiled in %.0f s", time.perf_counter() - started)
    return True


def forget_compiled_passes() -> None:
    """Go back to computing without generated code."""
    _generated.clear()


def generated(
    kind: Merge | Count,
    gates: Tensor,
    dtype: torch.dtype,
    *,
    delta: Tensor | None = None,
    weights: Tensor | None = None,
) -> Callable[..., Any] | None:
    """The generated code for this pass, where there is one: over gates, or for a merge over a parameter and its gates.

    Args:
        kind: The pass.
        gates: Gate logits, or kept values, `[M, *gate_shape]`.
        dtype: Type of the base; of the gates themselves where there is none.
        delta: The delta of a merge.
        weights: Expert weights `[E, M]` of a merge.
    """
    if not _generated or gates.numel() < MIN_SIZE * len(gates) or torch.compiler.is_compiling():
        return None
    gate_type = kept_type(dtype) if kind == "merge_values" else torch.float32
    if gates.dtype != gate_type or any(t is not None and t.dtype != torch.float32 for t in (delta, weights)):
        return None
    if delta is not None and gates.shape[1:] != delta.shape:
        return None
    num_tasks = 0 if weights is None else len(weights)
    return _generated.get(_Settings(kind, len(gates), num_tasks, gates.device.type, dtype))


def _generate(settings: _Settings, device: torch.device) -> Callable[..., Any]:
    """Compile by a call as any later one will be: without gradient, and with a size that stands for others."""
    function = torch.compile(_PASSES[settings.kind], dynamic=True)
    delta = torch.zeros(MIN_SIZE, device=device)
    base = torch.zeros(MIN_SIZE, device=device, dtype=settings.dtype)
    gates = torch.zeros(settings.num_experts, MIN_SIZE, device=device)
    weights = torch.zeros(settings.num_tasks, settings.num_experts, device=device)
    tasks = [torch.empty_like(base) for _ in range(settings.num_tasks)]
    examples: dict[str, tuple[Any, ...]] = {
        "merge": (tasks, base, delta, gates, weights, EVAL_TEMPERATURE),
        "merge_values": (tasks, base, delta, gates.to(kept_type(settings.dtype)), weights),
        "gradients": (delta, gates, weights, tasks, TRAIN_TEMPERATURE),
        "open_gates": (gates, TRAIN_TEMPERATURE),
        "expected_open_gates": (gates,),
        "expected_gradient": (gates, torch.zeros(settings.num_experts, device=device)),
    }
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        function(*examples[settings.kind])
    return function


def _merge(out: list[Tensor], base: Tensor, delta: Tensor, logits: Tensor, weights: Tensor, temperature: float) -> None:
    """[`kernels.merge`][smat_peft.experts.kernels.merge] of flat tensors: out and base `[n]`, logits `[M, n]`."""
    values = [_values(row, temperature)[2] for row in logits.unbind(0)]
    _write_tasks(out, base, delta, values, weights)


def _merge_values(out: list[Tensor], base: Tensor, delta: Tensor, values: Tensor, weights: Tensor) -> None:
    """The same from gate values `[M, n]`."""
    _write_tasks(out, base, delta, [row.to(delta.dtype) for row in values.unbind(0)], weights)


def _gradients(
    delta: Tensor, logits: Tensor, weights: Tensor, outgoing: list[Tensor], temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """[`kernels.gradients`][smat_peft.experts.kernels.gradients] of flat tensors, all three of them."""
    num_tasks = len(outgoing)
    by_task = [gradient.to(delta.dtype) for gradient in outgoing]
    per_gate = [delta * gradient for gradient in by_task]
    grad_delta = torch.zeros_like(delta)
    grad_logits, grad_weights = [], []
    for m, row in enumerate(logits.unbind(0)):
        sigmoid, stretched, value = _values(row, temperature)
        slope = sigmoid * (1 - sigmoid) * ((STRETCH_HIGH - STRETCH_LOW) / temperature)
        combined = torch.zeros_like(delta)
        for e in range(num_tasks):
            grad_delta = grad_delta + weights[e, m] * value * by_task[e]
            combined = combined + weights[e, m] * per_gate[e]
            grad_weights.append((value * per_gate[e]).sum(dtype=torch.float64))
        grad_logits.append(torch.where((stretched > 0) & (stretched < 1), slope * combined, 0.0))
    return grad_delta, torch.stack(grad_logits), torch.stack(grad_weights).view(-1, num_tasks).T.to(weights.dtype)


def _values(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    sigmoid = torch.sigmoid(logits / temperature)
    stretched = sigmoid * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
    return sigmoid, stretched, stretched.clamp(0.0, 1.0)


def _write_tasks(out: list[Tensor], base: Tensor, delta: Tensor, values: Sequence[Tensor], weights: Tensor) -> None:
    for task, own in zip(out, weights.unbind(0), strict=True):
        mixed = sum(
            (weight * value for weight, value in zip(own.unbind(0), values, strict=True)), start=torch.zeros_like(delta)
        )
        task.copy_(torch.addcmul(base.to(delta.dtype), mixed, delta))


def _open_gates(logits: Tensor, temperature: float) -> Tensor:
    return torch.stack([(_values(row, temperature)[1] > 0).sum() for row in logits.unbind(0)])


def _expected_open_gates(logits: Tensor) -> Tensor:
    rows = [torch.sigmoid(row + EXPECTED_L0_SHIFT).sum(dtype=torch.float64) for row in logits.unbind(0)]
    return torch.stack(rows).to(logits.dtype)


def _expected_gradient(logits: Tensor, outgoing: Tensor) -> Tensor:
    probability = torch.sigmoid(logits + EXPECTED_L0_SHIFT)
    return probability * (1 - probability) * outgoing[:, None]


_PASSES: dict[Merge | Count, Callable[..., Any]] = {
    "merge": _merge,
    "merge_values": _merge_values,
    "gradients": _gradients,
    "open_gates": _open_gates,
    "expected_open_gates": _expected_open_gates,
    "expected_gradient": _expected_gradient,
}
