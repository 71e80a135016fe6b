"""Meta-tuning any other adapter, such as LoRA, by prototypes alone: what MetaLearner is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from smat_peft.episodes.episode import Episode
from smat_peft.experts.prototypes import query_logits
from smat_peft.meta_tuning.arguments import MetaTuningArguments
from smat_peft.meta_tuning.chunks import Chunks
from smat_peft.meta_tuning.objective import query_loss
from smat_peft.tuner.features import extract_features


class PrototypeLearner(nn.Module):
    """A model with an adapter that has no experts, trained by the query's cross-entropy (Snell et al. 2017).

    It is to [`MetaTrainer`] what [`MetaLearner`] is: one call is this process's share of one update.

    Args:
        model: A model from `get_peft_model`; what is trainable in it is trained.
        arguments: The scale of the logits and the episodes of an update.
        placement: How many processes there are, and which this is: nothing here depends on it.
    """

    router = None
    logged = ("accuracy",)

    def __init__(self, model: Any, arguments: MetaTuningArguments, **placement: int) -> None:
        super().__init__()
        self.model = model
        self.arguments = arguments
        self.statistics: dict[str, Tensor] = {}
        self.loss_scale = 1.0
        self.chunks = Chunks(arguments.max_batch_size)
        self.train()

    def train(self, mode: bool = True) -> PrototypeLearner:
        """The backbone's passes stay deterministic, as in [`MetaLearner`]; LoRA's dropout is off, too."""
        super().train(mode)
        for module in self.model.modules():
            module.training = False
        return self

    def forward(self, episodes: Sequence[Episode], uniform: Tensor | None = None) -> dict[str, Tensor]:
        """The loss `query_ce`, summed over the episodes and divided by `episodes_per_step`."""
        logits = [self.chunks.within_memory(partial(self._logits, episode), episode) for episode in episodes]
        pairs = list(zip(logits, (episode.query_labels for episode in episodes), strict=True))
        loss = torch.stack([query_loss(found, labels) for found, labels in pairs]).sum()
        self.statistics = {"accuracy": torch.stack([_accuracy(found, labels) for found, labels in pairs]).mean()}
        return {"query_ce": loss / self.arguments.episodes_per_step}

    @torch.no_grad()
    def validate(self, episode: Episode) -> float:
        """Query accuracy on one episode."""
        return float(_accuracy(self._logits(episode), episode.query_labels))

    def warnings(self) -> list[str]:
        """What went wrong in a run: there is nothing that could stay unseen."""
        return []

    def _logits(self, episode: Episode) -> Tensor:
        backbone = partial(extract_features, self.model.get_base_model())
        features = self.chunks.features(backbone, torch.cat([episode.support, episode.query]))
        return query_logits(features, episode.support_labels, self.arguments.logit_scale)


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(-1) == labels).float().mean()
