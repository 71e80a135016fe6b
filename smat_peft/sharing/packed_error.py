"""How much the logits of a packed adapter differ from those of the adapter that it is made of."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from smat_peft.errors import ConfigurationError
from smat_peft.experts.packed import merge_packed_into
from smat_peft.few_shot.adaptation import classify_episode
from smat_peft.few_shot.backbone import device_of, root_of
from smat_peft.few_shot.mixing import MergedExperts, mix_experts
from smat_peft.tuner.layer import SMATLayer
from smat_peft.tuner.packed import PackedParameter

NUM_IMAGES = 64
IMAGES_OF_TASK = 16  # half of them are the support, a class each, the others the queries
FEWEST = 4  # images of a task: two classes, two queries


def random_images(model: nn.Module) -> Tensor:
    """Images `[N, 3, H, W]` of noise, always the same, in the size that the backbone's config states.

    Raises:
        ConfigurationError: It states none.
    """
    size = getattr(getattr(root_of(model), "config", None), "image_size", None)
    if size is None:
        raise ConfigurationError("the model's config states no image_size: give images to measure the error on")
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(NUM_IMAGES, 3, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logit_error(model: nn.Module, packed: Mapping[tuple[SMATLayer, str], PackedParameter], images: Tensor) -> float:
    """The largest difference of cosine logits (METHOD 5) over tasks made of the images `[N, 3, H, W]`, each routed.

    Raises:
        ConfigurationError: There are fewer than 4 images, or adapters are disabled.
    """
    if len(images) < FEWEST:
        raise ConfigurationError(f"the error is measured on at least {FEWEST} images, got {len(images)}")
    errors = []
    for task in images.to(device_of(model)).split(IMAGES_OF_TASK):
        if len(task) < FEWEST:
            continue
        support, queries = task.chunk(2)
        labels = torch.arange(len(support), device=task.device)
        exact = mix_experts(model, support, labels)
        if exact.expert_weights is None:
            raise ConfigurationError("adapters are disabled: pack outside of disable_adapter()")
        again = MergedExperts(exact.expert_weights, _merged(packed, exact.expert_weights))
        logits = [classify_episode(model, support, labels, queries, experts=mix)[0] for mix in (exact, again)]
        errors.append((logits[0] - logits[1]).abs().max())
    return torch.stack(errors).max().item()


def _merged(packed: Mapping[tuple[SMATLayer, str], PackedParameter], weights: Tensor) -> dict[str, Tensor]:
    bases = [getattr(layer.get_base_layer(), name) for layer, name in packed]
    out = [base.new_empty(base.shape) for base in bases]
    merge_packed_into(out, bases, [p.delta for p in packed.values()], [p.gates for p in packed.values()], weights)
    return {layer.full_name(name): weight for (layer, name), weight in zip(packed, out, strict=True)}
