"""Generated code computes what the blocked passes compute, is used where it fits, and is never needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from smat_peft.experts import compiled, kernels
from smat_peft.experts.counting import expected_open_gates, open_gates
from smat_peft.experts.gates import gate_values
from smat_peft.experts.interpolate import interpolate_tasks, merge_into

EXPERTS, TASKS = 3, 2
SHAPES = [(64, 64), (3, 70_001), (5000,)]  # above the least size; one block, several with a rest, a vector


@pytest.fixture(scope="module", autouse=True)
def _generated() -> Iterator[None]:
    passes: tuple[Any, ...] = ("merge", "merge_values", "gradients", *compiled.COUNTS)
    for dtype in (torch.float32, torch.bfloat16):
        assert compiled.compile_passes(*passes, num_experts=EXPERTS, num_tasks=TASKS, dtype=dtype)
    yield
    compiled.forget_compiled_passes()


def inputs(shape: tuple[int, ...], num_tasks: int = TASKS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    base, delta = (torch.randn(shape, generator=generator) for _ in range(2))
    gates = 2 * torch.randn(EXPERTS, *shape, generator=generator)
    return [base, delta, gates, torch.rand(num_tasks, EXPERTS, generator=generator)]


def results(tensors: list[Tensor]) -> list[Tensor]:
    """Task weights and gradients; an error where code would be generated for them, which is all done before."""
    base, *leaves = tensors[0], *(tensor.clone().requires_grad_() for tensor in tensors[1:])
    with torch._dynamo.config.patch(error_on_recompile=True):
        return _results(base, leaves)


def _results(base: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    tasks = interpolate_tasks(base, *leaves, 2 / 3)
    seen = [
        torch.randn(base.shape, generator=torch.Generator().manual_seed(e)).to(base.dtype) for e in range(len(tasks))
    ]
    return [*tasks, *torch.autograd.grad(tasks, leaves, seen)]


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that computes `results` without generated code."""

    def compute(tensors: list[Tensor]) -> list[Tensor]:
        with monkeypatch.context() as context:
            context.setattr(compiled, "_generated", {})
            return results(tensors)

    return compute


def forbid_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("merge", "gradients"):
        monkeypatch.setattr(kernels, name, lambda *_, **__: pytest.fail("the blocked pass was used"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_both_ways_agree_to_a_millionth(
    shape: tuple[int, ...], dtype: torch.dtype, autocast: bool, blocked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = inputs(shape)
    tensors[0] = tensors[0].to(dtype)
    expected = blocked(tensors)
    forbid_blocks(monkeypatch)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = results(tensors)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        tolerance = 1e-6 if ours.dtype == torch.float32 else 1e-2  # a rounding of the last of eight bits
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_gates_that_are_closed_leave_the_base_as_it_is() -> None:
    base, delta, gates, weights = inputs(SHAPES[0])
    for task in interpolate_tasks(base, delta, gates - 100, weights, 1.0):
        assert torch.equal(task, base)


def test_kept_values_merge_like_the_gates_they_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    base, delta, gates, weights = inputs(SHAPES[1])
    gates = gates.sign() * 10  # values of 0 and 1, which half precision holds exactly
    expected = interpolate_tasks(base, delta, gates, weights, 1.0)
    forbid_blocks(monkeypatch)
    out = [torch.empty_like(base) for _ in range(TASKS)]
    merge_into(out, base, delta, gate_values(gates, 1.0).half(), weights, None)
    torch.testing.assert_close(out, list(expected))


@pytest.mark.parametrize("shape", SHAPES)
def test_counts_agree_with_those_of_blocks(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def counts() -> tuple[Tensor, Tensor, Tensor]:
        gates = inputs(shape)[2].requires_grad_()
        with torch._dynamo.config.patch(error_on_recompile=True):
            expected = expected_open_gates(gates)
            return open_gates(gates, 2 / 3), expected, torch.autograd.grad(expected @ torch.arange(3.0), gates)[0]

    count, expected, gradient = counts()
    monkeypatch.setattr(compiled, "_generated", {})
    assert torch.equal(count, counts()[0])
    torch.testing.assert_close((expected, gradient), counts()[1:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "changed",
    [
        lambda base, delta, gates, weights: [base, delta, gates, weights[:1]],  # other numbers of tasks
        lambda base, delta, gates, weights: [base, delta, gates[:2], weights[:, :2]],  # and experts
        lambda base, delta, gates, weights: [base[:9], delta[:9], gates[:, :9], weights],  # too small
        lambda base, delta, gates, weights: [base, delta, gates[:, :1], weights],  # structured gates
        lambda *tensors: [tensor.double() for tensor in tensors],
    ],
)
def test_what_does_not_fit_is_computed_in_blocks(changed: Any, blocked: Any) -> None:
    tensors = changed(*inputs(SHAPES[0]))
    for ours, theirs in zip(results(tensors), blocked(tensors), strict=True):
        assert torch.equal(ours, theirs)


def test_compiling_is_announced_once(caplog: pytest.LogCaptureFixture) -> None:
    assert compiled.compile_passes("merge", num_experts=EXPERTS, num_tasks=TASKS)  # there already
    assert not caplog.messages
    assert compiled.compile_passes("merge", num_experts=2, num_tasks=1)
    said = [record.message for record in caplog.records if record.name == compiled.__name__]
    assert [message.split()[0] for message in said] == ["compiling", "compiled"]


def test_without_a_compiler_a_warning_says_so_and_blocks_are_used(
    monkeypatch: pytest.MonkeyPatch, blocked: Any
) -> None:
    def no_compiler(*_: Any, **__: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nand many more lines")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.warns(UserWarning, match=r"slower for it: No working C\+\+ compiler found$"):
        assert not compiled.compile_passes("merge", num_experts=EXPERTS, num_tasks=5)
    tensors = inputs(SHAPES[0], num_tasks=5)
    for ours, theirs in zip(results(tensors), blocked(tensors), strict=True):
        assert torch.equal(ours, theirs)
