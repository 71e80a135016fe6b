"""The part of an update that is interpolation: the tensors of both sides, and what each does with them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

import baseline
from smat_peft.experts.counting import expected_open_gates, open_gates
from smat_peft.experts.gates import (
    TRAIN_TEMPERATURE,
    GateGranularity,
    gate_shape,
    initialise_gates_,
)
from smat_peft.experts.interpolate import interpolate_many
from workloads import vit_shapes

SAME_GRADIENT = 1e-4  # norm-wise; above it the two sides do not compute the same


class Merging:
    """The tensors of both sides and what is done with them."""

    def __init__(
        self, arguments: argparse.Namespace, device: torch.device, granularity: GateGranularity = "element"
    ) -> None:
        shapes, experts = vit_shapes(arguments.params), arguments.experts
        self.size = sum(shape.numel() for shape in shapes)
        self.base = [torch.randn(shape, device=device) for shape in shapes]
        self.delta = [torch.randn(shape, device=device).mul_(1e-3).requires_grad_() for shape in shapes]
        self.incoming = [torch.randn(shape, device=device) for shape in shapes]
        logits = [torch.empty(experts, *gate_shape(shape, granularity), device=device) for shape in shapes]
        self.covered = [shape.numel() / gates[0].numel() for shape, gates in zip(shapes, logits, strict=True)]
        self.gates = [initialise_gates_(gates, 0.5).requires_grad_() for gates in logits]
        self.gates_last = [gates.detach().movedim(0, -1).contiguous().requires_grad_() for gates in self.gates]
        self.buffers = [torch.zeros_like(gates) for gates in self.gates]
        self.weights = torch.rand(arguments.episodes, experts, device=device).requires_grad_()
        self.coefficients = torch.rand(experts, device=device)  # of E[L0] in the loss

    def ours(self) -> Iterator[str]:
        """One update of smat_peft."""
        yield self.forget_gradients()
        tasks = self.merge(self.weights)
        torch.stack([open_gates(g, TRAIN_TEMPERATURE) * n for g, n in zip(self.gates, self.covered, strict=True)])
        counts = [expected_open_gates(g) * n for g, n in zip(self.gates, self.covered, strict=True)]
        constraint = len(self.weights) * torch.dot(torch.stack(counts).sum(0), self.coefficients) / self.size
        yield "forward"
        incoming = [gradient for gradient in self.incoming for _ in self.weights]
        torch.autograd.backward([*tasks, constraint], [*incoming, torch.ones_like(constraint)])
        yield "backward"

    def theirs(self) -> Iterator[str]:
        """One update of the baseline."""
        yield self.forget_gradients()
        for weights in self.weights:
            gates = [baseline.gate_values(logits, TRAIN_TEMPERATURE) for logits in self.gates_last]
            merged = [baseline.merge(*t, weights) for t in zip(self.base, self.delta, gates, strict=True)]
            torch.stack([baseline.open_gates(g) * n for g, n in zip(gates, self.covered, strict=True)])
            counts = [baseline.expected_open_gates(g) * n for g, n in zip(self.gates_last, self.covered, strict=True)]
            constraint = torch.dot(torch.stack(counts).sum(0), self.coefficients) / self.size
            yield "forward"
            torch.autograd.backward([*merged, constraint], [*self.incoming, torch.ones_like(constraint)])
            yield "backward"

    def merge(self, weights: Tensor) -> list[Tensor]:
        """Our task weights for expert weights `[E, M]`: of each parameter, those of all E episodes."""
        merged = interpolate_many(self.base, self.delta, self.gates, weights, TRAIN_TEMPERATURE)
        return [task for of_parameter in merged for task in of_parameter]

    def one_merge(self) -> Iterator[str]:
        """Our merge of one episode."""
        yield self.forget_gradients()
        merged = self.merge(self.weights[:1])
        yield "forward"
        torch.autograd.backward(merged, self.incoming)
        yield "backward"

    def bytes_moved(self) -> dict[str, int]:
        """Bytes that one merge must read and write."""
        gates = sum(gates.nbytes for gates in self.gates)
        one = sum(base.nbytes for base in self.base)
        return {"forward": gates + 3 * one, "backward": 2 * gates + 3 * one}

    def sigmoid(self) -> None:
        """A bare sigmoid over all gates, into a warm buffer."""
        for gates, out in zip(self.gates, self.buffers, strict=True):
            torch.sigmoid(gates.detach(), out=out)

    def forget_gradients(self) -> str:
        """Set all gradients to None, as an update does."""
        for tensor in (*self.delta, *self.gates, *self.gates_last, self.weights):
            tensor.grad = None
        return "zero_grad"

    def check_same_gradients(self) -> None:
        """Stop unless both sides give the same gradients."""
        list(self.ours())
        ours = gradients([*self.delta, self.weights, *self.gates])
        list(self.theirs())
        theirs = gradients([*self.delta, self.weights])
        theirs += [gradient.movedim(-1, 0) for gradient in gradients(self.gates_last)]
        for one, other in zip(ours, theirs, strict=True):
            if (one - other).norm() > SAME_GRADIENT * other.norm():
                raise SystemExit(f"the two sides differ in a gradient of shape {tuple(one.shape)}")


def gradients(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The gradients that tensors have; an error where one has none."""
    found = [tensor.grad for tensor in tensors if tensor.grad is not None]
    assert len(found) == len(tensors)
    return found
