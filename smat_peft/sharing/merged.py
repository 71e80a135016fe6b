"""A model specialised to one task as an ordinary transformers model, with its image processor and a card of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from peft import PeftModel
from transformers import ViTImageProcessorPil
from transformers.image_processing_utils import BaseImageProcessor

from smat_peft.episodes.images import ImageTransform
from smat_peft.files import moving_into
from smat_peft.sharing.model_card import TAGS, save_card

TEMPLATE = """\
---
{{ card_data }}
---

# {{ name }}

`{{ backbone }}` with the weights that the SMAT adapter `{{ adapter }}` makes of it {{ task }}. It is an ordinary
transformers model: the adapter and the package that made it are not needed. It gives features, not classes.

```python
from transformers import AutoImageProcessor, AutoModel

processor, model = AutoImageProcessor.from_pretrained("{{ name }}"), AutoModel.from_pretrained("{{ name }}")
outputs = model(**processor(images, return_tensors="pt"))
```

A few-shot classifier on its features:

```python
from smat_peft import FewShotClassifier

classifier = FewShotClassifier.from_pretrained("{{ name }}").fit(images, labels)
```
"""


@dataclass(frozen=True)
class Specialisation:
    """The task that a model was adapted to.

    Attributes:
        task: What it is called.
        support_size: Number of labelled images that it was adapted to.
        num_classes: Number of their classes.
    """

    task: str
    support_size: int
    num_classes: int

    def __str__(self) -> str:
        return f"for the task {self.task}, from {self.support_size} labelled images of {self.num_classes} classes"


def save_merged(
    model: PeftModel,
    folder: Path,
    transform: ImageTransform,
    *,
    base_model: str,
    adapter: str,
    specialisation: Specialisation | None = None,
    name: str | None = None,
    license: str | None = None,
) -> None:
    """Merge a model's adapter and save the result with its image processor and its card.

    Args:
        model: The model, on a task of [`SMATModel.adapt`] or on none: its experts are then mixed evenly. Its own
            weights are changed: it is not to be used after this.
        folder: Where to; it is made.
        transform: What makes pixels of images.
        base_model: The backbone's name on the Hub, or its folder.
        adapter: The adapter's name, for the card.
        specialisation: The task that the model is on.
        name: The model's whole name on the Hub, `user/name`; the folder's own name if it is not there.
        license: The model's licence, as the Hub spells it.

    Raises:
        CheckpointError: The folder cannot be written to.
    """
    merged: Any = model.merge_and_unload()
    with moving_into(folder) as scratch:
        merged.save_pretrained(scratch)
        image_processor(transform).save_pretrained(scratch)
        data = ModelCardData(
            library_name="transformers",
            base_model=base_model,
            base_model_relation="finetune",
            pipeline_tag="image-feature-extraction",
            tags=list(TAGS),
            license=license,
        )
        save_card(
            scratch,
            TEMPLATE,
            data,
            name=name or folder.resolve().name,
            adapter=adapter,
            task=specialisation or "where its experts are mixed evenly, for no task of their own",
        )


def image_processor(transform: ImageTransform) -> BaseImageProcessor:
    """An image processor of transformers that makes the same pixels, to be saved beside a model."""
    return ViTImageProcessorPil(
        do_resize=transform.resize is not None,
        size=_size(transform.resize or transform.size),
        do_center_crop=transform.resize != transform.size,
        crop_size=_size(transform.size),
        resample=transform.resample,
        rescale_factor=transform.rescale,
        image_mean=list(transform.mean),
        image_std=list(transform.std),
    )


def _size(size: tuple[int, int] | int) -> dict[str, int]:
    return {"shortest_edge": size} if isinstance(size, int) else {"height": size[0], "width": size[1]}
