"""DiffAugment: random changes of pixels while a model is fine-tuned on a support set (METHOD 11)."""

from __future__ import annotations

import random

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHANGED_SHARE = 0.9  # of the calls; the others leave the batch as it is
MIRRORED_SHARE = 0.5  # of the changed batches
LARGEST_SHIFT = 0.125  # of the image's side, up or down, left or right


class DiffAugment:
    """Mirrors a batch, changes brightness, saturation and contrast of each image and shifts it; on normalised pixels.

    Args:
        seed: Of all draws. The coins that concern a whole batch come from a generator of Python's, what differs from
            image to image from one of torch's on the CPU: the same draws on every device.
    """

    def __init__(self, seed: int = 0) -> None:
        self._coins = random.Random(seed)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
        """The images changed; in one call out of ten the very tensor that was given."""
        if self._coins.random() >= CHANGED_SHARE:
            return images
        if self._coins.random() >= MIRRORED_SHARE:
            images = images.flip(-1)
        for change in (self.brighten, self.saturate, self.contrast, self.shift):
            images = change(images)
        return images

    def brighten(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
        """Add between -0.5 and 0.5."""
        return images + (self._uniform(images) - 0.5)

    def saturate(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
        """Multiply the distance of each pixel to its grey by 0 to 2."""
        grey = images.mean(1, keepdim=True)
        return (images - grey) * (2 * self._uniform(images)) + grey

    def contrast(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
        """Multiply the distance of each pixel to the image's mean by 0.5 to 1.5."""
        mean = images.mean((1, 2, 3), keepdim=True)
        return (images - mean) * (self._uniform(images) + 0.5) + mean

    def shift(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
        """Move each image by whole pixels; what comes in from outside is 0."""
        height, width = images.shape[-2:]
        # All shifts of rows are drawn before those of columns.
        rows, columns = self._shifted(len(images), height), self._shifted(len(images), width)
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        flat = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]  # [N, H, W]
        flat, inside = flat.to(images.device), inside.to(images.device)
        moved = images.flatten(2).gather(2, flat.flatten(1)[:, None, :].expand(-1, images.shape[1], -1))
        return moved.view_as(images) * inside[:, None]

    def _uniform(self, images: Tensor) -> Float[Tensor, "N 1 1 1"]:
        return torch.rand(len(images), 1, 1, 1, generator=self._generator).to(images)

    def _shifted(self, count: int, side: int) -> Int[Tensor, "N side"]:
        """Where in the old image each position of the new one lies."""
        farthest = int(side * LARGEST_SHIFT + 0.5)
        return torch.arange(side) + torch.randint(-farthest, farthest + 1, (count, 1), generator=self._generator)
