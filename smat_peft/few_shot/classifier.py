"""FewShotClassifier: a backbone or an adapter on a user's own few images, by scikit-learn's estimator protocol."""

from __future__ import annotations

import copy
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted
from torch import nn

from smat_peft.episodes.images import ImageTransform, load_image_transform
from smat_peft.errors import CheckpointError, ConfigurationError, DataError
from smat_peft.few_shot.adaptation import AdaptedTask, adapt_to_support, classify_queries
from smat_peft.few_shot.backbone import DEFAULT_BATCH_SIZE, on_device
from smat_peft.few_shot.fine_tuning import Adaptation
from smat_peft.few_shot.inputs import check_images, encode_labels, pixel_batches
from smat_peft.few_shot.learning_rate import choose_learning_rate
from smat_peft.few_shot.loading import find_model
from smat_peft.few_shot.saving import SavedClassifier, read_classifier, write_classifier
from smat_peft.kinds import is_number, is_whole
from smat_peft.tuner.adapters import has_experts

NONE_OF_THESE = "none of these"  # what `predict` answers below `reject_below` where classes are strings
NONE_OF_THESE_NUMBER = -1  # and where they are numbers


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """Classify images by a few labelled examples of each class (METHOD 6 and 11).

    A model with experts is adapted to the examples: the experts are mixed and merged once, the merged weights are
    fine-tuned if `adaptation` says so, and are kept with the classifier. The model itself never changes, so several
    classifiers can share one; scikit-learn's `clone` shares it, too.

    Args:
        model: A backbone from transformers, or one with a PEFT adapter, or any module that maps pixels
            `[N, 3, H, W]` to features.
        image_processor: The model's image processor, or an `ImageTransform`. Not needed where images are given as
            pixels.
        adaptation: `"prototype"`: no gradient step; `"full"` or `"lora"`: fine-tune all weights, or LoRA on attention,
            on the examples.
        steps: Steps of fine-tuning.
        learning_rate: Of fine-tuning. `"auto"` tries a few rates on examples that are left out in turn, and says first
            how long that takes; not fine-tuning at all is one of its choices.
        augment: Fine-tune on images changed at random (DiffAugment). It mirrors images: turn it off where left and
            right matter, as in writing.
        batch_size: Images that go through the backbone at a time.
        device: Where to compute; where the model is, by default. A model that is elsewhere is copied there.
        seed: Of what fine-tuning draws.
        verbose: Say on stderr how long choosing a learning rate will take.

    Attributes:
        classes_: The class names, sorted; columns of `predict_proba` are in this order.
        learning_rate_ (float): The rate of fine-tuning; 0 where there was none.
        task_ (AdaptedTask): The examples' prototypes, task weights and expert weights.
        model_ (nn.Module): `model`, or its copy on `device`.
        transform_ (ImageTransform): What makes pixels of images.
        image_size_ (tuple[int, int]): Height and width of the pixels.

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
        adaptation: str = "prototype",
        steps: int = 50,
        learning_rate: float | Literal["auto"] = "auto",
        augment: bool = True,
        batch_size: int = DEFAULT_BATCH_SIZE,
        device: str | torch.device | None = None,
        seed: int = 0,
        verbose: bool = True,
    ) -> None:
        self.model = model
        self.image_processor = image_processor
        self.adaptation = adaptation
        self.steps = steps
        self.learning_rate = learning_rate
        self.augment = augment
        self.batch_size = batch_size
        self.device = device
        self.seed = seed
        self.verbose = verbose

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        adapter: str | Path | None = None,
        *,
        revision: str | None = None,
        token: str | None = None,
        image_size: int | None = None,
        device: str | torch.device | None = None,
        **settings: Any,
    ) -> FewShotClassifier:
        """A classifier, not yet fitted, from the Hub or from folders.

        Args:
            name_or_path: A vision model that transformers' `AutoModel` loads; its image processor comes with it. Or a
                PEFT adapter, which names the model that it is for.
            adapter: A PEFT adapter for that model.
            revision: Branch, tag or commit of the adapter, or of the model where there is no adapter.
            token: What opens private repositories; the one of `hf auth login` by default.
            image_size: Height and width of images in place of the image processor's.
            device: Where to compute; the model is loaded there.
            settings: The class's other arguments.

        Raises:
            CheckpointError: The backbone or the adapter cannot be loaded.
            ConfigurationError: The image processor cannot be used.
        """
        source = find_model(name_or_path, adapter, revision=revision, token=token)
        model = source.load()
        transform = load_image_transform(
            source.backbone, image_size, revision=source.backbone_revision, token=source.token
        )
        return cls(model if device is None else model.to(device), transform, device=device, **settings)

    def fit(self, images: Any, y: Any) -> FewShotClassifier:
        """Take the examples.

        Args:
            images: A list of PIL images, paths or uint8 arrays `[H, W, 3]`, one uint8 array `[N, H, W, 3]`, or pixels
                `[N, 3, H, W]` as the image processor makes them.
            y: A string or an integer for each image; at least two classes, at least one image of each.

        Raises:
            DataError: The images or labels cannot be used; the message says which.
            ConfigurationError: A setting is out of range, or the learning rate so high that fine-tuning diverged.
        """
        if not isinstance(self.model, nn.Module):
            raise ConfigurationError(
                f"model must be a torch module, got {self.model!r}; FewShotClassifier.from_pretrained takes a name"
            )
        for name, least in (("steps", 0), ("seed", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if not is_whole(value) or value < least:
                raise ConfigurationError(f"{name} must be a whole number, at least {least}, got {value!r}")
        automatic = isinstance(self.learning_rate, str)
        if self.learning_rate != "auto" if automatic else not is_number(self.learning_rate):
            raise ConfigurationError(f"learning_rate must be a number or 'auto', got {self.learning_rate!r}")
        rate = 0.0 if automatic else float(self.learning_rate)
        adaptation = Adaptation(self.adaptation, int(self.steps), rate, bool(self.augment), seed=int(self.seed))
        fitted: AdaptedTask | None = getattr(self, "task_", None)
        if fitted is not None and fitted.expert_weights is not None and not has_experts(self.model):
            warnings.warn(
                "this classifier was loaded without the adapter that its weights came of, and is fitted anew with the "
                "backbone alone; FewShotClassifier.load(folder, model=adapted_model) keeps the adapter",
                stacklevel=2,
            )
        transform = _as_transform(self.image_processor)
        checked = check_images(images, transform)
        classes, codes = encode_labels(y)
        if len(checked) != len(codes):
            raise DataError(f"there are {len(checked)} images but {len(codes)} labels")
        pixels = torch.cat(list(pixel_batches(checked, transform, self.batch_size)))
        model = on_device(self.model, self.device)
        if automatic and self.adaptation != "prototype":
            rate = choose_learning_rate(
                model, pixels, codes, adaptation, batch_size=self.batch_size, tell=_say if self.verbose else None
            )
            adaptation = replace(adaptation, learning_rate=rate)
        task = adapt_to_support(model, pixels, codes, adaptation=adaptation, batch_size=self.batch_size)
        self.classes_, self.task_, self.model_, self.transform_ = classes, task, model, transform
        self.learning_rate_ = rate if adaptation.takes_steps else 0.0
        self.image_size_ = (pixels.shape[2], pixels.shape[3])
        return self

    def predict(self, images: Any, reject_below: float | None = None) -> NDArray[Any]:
        """The most probable class of each image, `[N]`.

        Args:
            images: As for [`fit`].
            reject_below: Where the most probable class is less probable than this, the answer is `"none of these"`, or
                -1 where classes are numbers. Probabilities are not calibrated: choose it on images of your own.

        Raises:
            DataError: The images cannot be used.
            ConfigurationError: `reject_below` is no probability, or the answer for it is the name of a class.
            sklearn.exceptions.NotFittedError: `fit` was not called before.
        """
        check_is_fitted(self)
        if reject_below is None:
            return self._most_probable(self.predict_proba(images))
        if not 0 <= reject_below <= 1:
            raise ConfigurationError(f"reject_below must be a probability, got {reject_below}")
        rejected = NONE_OF_THESE if self.classes_.dtype.kind == "U" else NONE_OF_THESE_NUMBER
        if rejected in self.classes_.tolist():
            raise ConfigurationError(f"{rejected!r} is the name of a class; rename it to use reject_below")
        probabilities = self.predict_proba(images)
        return np.where(probabilities.max(1) < reject_below, rejected, self._most_probable(probabilities))

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

    def save(self, folder: str | Path) -> None:
        """Save a fitted classifier, without its backbone: see [`smat_peft.few_shot.saving`].

        Raises:
            CheckpointError: The folder cannot be written to.
            sklearn.exceptions.NotFittedError: `fit` was not called before.
        """
        check_is_fitted(self)
        left_out = ("model", "image_processor", "device")
        settings = {name: value for name, value in self.get_params(deep=False).items() if name not in left_out}
        saved = SavedClassifier(
            self.classes_, self.task_, self.learning_rate_, self.transform_, self.image_size_, settings
        )
        write_classifier(Path(folder), saved, self.model_)

    @classmethod
    def load(
        cls, folder: str | Path, model: nn.Module | None = None, *, device: str | torch.device | None = None
    ) -> FewShotClassifier:
        """A fitted classifier that [`save`] wrote; it gives the same probabilities.

        Args:
            folder: Where it is.
            model: Its backbone; loaded by the name it was loaded by before where not given. No adapter is needed: the
                weights that came of it are in the folder. (To fit such a classifier anew, give the adapted model.)
            device: Where to compute.

        Raises:
            CheckpointError: The folder is damaged, or the backbone is another one.
        """
        saved, backbone = read_classifier(Path(folder), model, device)
        try:
            classifier = cls(backbone, saved.transform, device=device, **saved.settings)
        except TypeError as error:  # a setting that this version does not have
            raise CheckpointError(f"{folder} holds no whole classifier: {error}") from error
        classifier.classes_, classifier.task_, classifier.model_ = saved.classes, saved.task, backbone
        classifier.transform_, classifier.image_size_ = saved.transform, saved.image_size
        classifier.learning_rate_ = saved.learning_rate
        return classifier

    def _most_probable(self, probabilities: NDArray[np.float64]) -> NDArray[Any]:
        predicted: NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return predicted

    def __sklearn_clone__(self) -> FewShotClassifier:
        clone = type(self)(**self.get_params(deep=False))  # the model is never changed and need not be copied
        if hasattr(self, "_metadata_request"):
            clone._metadata_request = copy.deepcopy(self._metadata_request)
        return clone

    def __sklearn_tags__(self) -> Tags:
        tags: Tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        return tags


def _as_transform(image_processor: Any) -> ImageTransform | None:
    if image_processor is None or isinstance(image_processor, ImageTransform):
        return image_processor
    try:
        return ImageTransform.from_processor(image_processor)
    except AttributeError as error:
        raise ConfigurationError(
            "image_processor must be one of transformers' or an ImageTransform, not a "
            f"{type(image_processor).__name__}; FewShotClassifier.from_pretrained takes a name"
        ) from error


def _say(seconds: float) -> None:
    print(f"choosing the learning rate takes about {seconds:.0f} s", file=sys.stderr)
