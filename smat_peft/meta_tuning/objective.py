"""The losses of meta-tuning, one function a term (METHOD 7.6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def query_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits `[N, C]` for labels `[N]`."""
    return F.cross_entropy(logits, labels)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Half the squared temperature times KL(student || teacher), a mean over the query.

    The student is the first argument of the divergence, the reverse of the usual distillation (METHOD 12.8). The
    teacher gets no gradient.
    """
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.detach() / temperature, dim=-1)
    divergence = F.kl_div(log_teacher, log_student, reduction="batchmean", log_target=True)
    return temperature**2 / 2 * divergence


def sparsity_loss(expected_l0: Tensor, multipliers: Tensor, weights: Tensor, target_sparsity: float) -> Tensor:
    """The constraint on the expected share of open gates, by multiplier and expert weight; gradient to the gates."""
    coefficients = (multipliers * weights).detach()
    return torch.dot(target_sparsity - 1 + expected_l0, coefficients)


def multiplier_loss(sparsity: Tensor, multipliers: Tensor, weights: Tensor, target_sparsity: float) -> Tensor:
    """What the multipliers descend: each grows while its expert is too dense; gradient to the multipliers."""
    return torch.dot(sparsity - target_sparsity, (multipliers * weights.detach()).to(sparsity))


def router_z_loss(logits: Tensor) -> Tensor:
    """Mean square of the router's logits `[M]`; gradient to the router."""
    return logits.square().mean()


@torch.no_grad()
def reset_multipliers_(multipliers: Tensor, sparsity: Tensor, target_sparsity: float) -> None:
    """Set the multipliers of experts that are sparser than asked to 0, in place."""
    multipliers.masked_fill_(sparsity > target_sparsity, 0.0)
