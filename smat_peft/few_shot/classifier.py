"""FewShotClassifier: a backbone or an adapter on a user's own few images, by scikit-learn's estimator protocol."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import nn

from smat_peft.episodes.images import ImageTransform, load_image_transform
from smat_peft.errors import ConfigurationError, DataError
from smat_peft.few_shot.adaptation import adapt_to_support, classify_queries
from smat_peft.few_shot.backbone import DEFAULT_BATCH_SIZE, device_of
from smat_peft.few_shot.inputs import check_images, encode_labels, pixel_batches
from smat_peft.few_shot.loading import load_model


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """Classify images by a few labelled examples of each class, without a gradient step (METHOD 6 and 11a).

    A model with experts is adapted to the examples: the experts are mixed and merged once, and the merged weights are
    kept with the classifier. Any other model is used as it is. The model itself never changes, so several classifiers
    can share one.

    Args:
        model (`nn.Module`): A backbone from transformers, or one with a PEFT adapter, or any module that maps pixels
            `[N, 3, H, W]` to features.
        image_processor (*optional*): The model's image processor, or an `ImageTransform`. Not needed where images are
            given as pixels.
        batch_size (`int`, *optional*, defaults to 64): Images that go through the backbone at a time.
        device (`str` or `torch.device`, *optional*): Where to compute; where the model is, by default. A model that is
            elsewhere is copied there.

    Attributes:
        classes_ (`ndarray`): The class names, sorted; columns of `predict_proba` are in this order.
        task_ (`AdaptedTask`): The examples' prototypes, task weights and expert weights.
        model_ (`nn.Module`): `model`, or its copy on `device`.
        transform_ (`ImageTransform`): What makes pixels of images.

    Example:
        >>> classifier = FewShotClassifier.from_pretrained("facebook/dino-vits16")  # doctest: +SKIP
        >>> classifier.fit(["cat1.jpg", "cat2.jpg", "dog1.jpg"], ["cat", "cat", "dog"])  # doctest: +SKIP
        >>> classifier.predict(["new.jpg"])  # doctest: +SKIP
        array(['dog'], dtype='<U3')
    """

    def __init__(
        self,
        model: nn.Module,
        image_processor: Any = None,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        device: str | torch.device | None = None,
    ) -> None:
        self.model = model
        self.image_processor = image_processor
        self.batch_size = batch_size
        self.device = device

    @classmethod
    def from_pretrained(
        cls,
        backbone: str | Path,
        adapter: str | Path | None = None,
        *,
        image_size: int | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        device: str | torch.device | None = None,
    ) -> FewShotClassifier:
        """A classifier from the Hub or from folders.

        Args:
            backbone: A vision model that transformers' `AutoModel` loads; its image processor comes with it.
            adapter: A PEFT adapter for that backbone.
            image_size: Height and width of images in place of the image processor's.
            batch_size: Images that go through the backbone at a time.
            device: Where to compute; the model is loaded there.

        Raises:
            CheckpointError: The backbone or the adapter cannot be loaded.
            ConfigurationError: The image processor cannot be used.
        """
        model = load_model(backbone, adapter)
        transform = load_image_transform(backbone, image_size)
        return cls(model if device is None else model.to(device), transform, batch_size=batch_size, device=device)

    def fit(self, images: Any, labels: Any) -> FewShotClassifier:
        """Take the examples.

        Args:
            images: PIL images or paths, or pixels `[N, 3, H, W]` as the image processor makes them.
            labels: A string or an integer for each image; at least two classes, at least one image of each.

        Raises:
            DataError: The images or labels cannot be used; the message says which.
        """
        if self.batch_size < 1:
            raise ConfigurationError(f"batch_size must be at least 1, got {self.batch_size}")
        transform = _as_transform(self.image_processor)
        check_images(images, transform)
        classes, codes = encode_labels(labels)
        if len(images) != len(codes):
            raise DataError(f"there are {len(images)} images but {len(codes)} labels")
        pixels = torch.cat(list(pixel_batches(images, transform, self.batch_size)))
        model = _on_device(self.model, self.device)
        self.task_ = adapt_to_support(model, pixels, codes, batch_size=self.batch_size)
        self.classes_, self.model_, self.transform_ = classes, model, transform
        return self

    def predict(self, images: Any) -> NDArray[Any]:
        """The most probable class of each image, `[N]`.

        Raises:
            DataError: The images cannot be used.
            sklearn.exceptions.NotFittedError: `fit` was not called before.
        """
        most_probable = self.predict_proba(images).argmax(axis=1)
        predicted: NDArray[Any] = self.classes_[most_probable]
        return predicted

    def predict_proba(self, images: Any) -> Float[NDArray[np.float64], "N C"]:
        """Probabilities `[N, C]` of the classes, in the order of `classes_`: softmax of cosine logits (METHOD 5).

        They rank the classes; nothing has calibrated them.

        Raises:
            DataError: The images cannot be used.
            sklearn.exceptions.NotFittedError: `fit` was not called before.
        """
        check_is_fitted(self)
        logits = [
            classify_queries(self.model_, self.task_, batch, batch_size=self.batch_size)
            for batch in pixel_batches(images, self.transform_, self.batch_size)
        ]
        probabilities: NDArray[np.float64] = torch.cat(logits).double().softmax(-1).cpu().numpy()
        return probabilities


def _as_transform(image_processor: Any) -> ImageTransform | None:
    if image_processor is None or isinstance(image_processor, ImageTransform):
        return image_processor
    return ImageTransform.from_processor(image_processor)


def _on_device(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    if device is None:
        return model
    wanted, present = torch.device(device), device_of(model)
    if wanted.type == present.type and wanted.index in (None, present.index):
        return model
    return copy.deepcopy(model).to(wanted)
