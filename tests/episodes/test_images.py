import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from transformers import AutoImageProcessor
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from smat_peft.episodes.domain import EVERY_AUGMENTATION, Augmentation
from smat_peft.episodes.images import ImageTransform, load_image_transform
from smat_peft.errors import ConfigurationError, DataError

PROCESSORS = {
    "vit": ViTImageProcessorPil(size={"height": 32, "width": 32}),
    "vit-oblong": ViTImageProcessorPil(size={"height": 24, "width": 40}, image_mean=[0.1, 0.2, 0.3]),
    "vit-bare": ViTImageProcessorPil(size={"height": 32, "width": 32}, do_rescale=False, do_normalize=False),
    "vit-bytes": ViTImageProcessorPil(size={"height": 32, "width": 32}, rescale_factor=1 / 127.5),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}),
    "dinov2": BitImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
    "crop-only": CLIPImageProcessorPil(do_resize=False, crop_size={"height": 33, "width": 20}),
    "crop-larger-than-resize": CLIPImageProcessorPil(size={"shortest_edge": 19}, crop_size={"height": 40, "width": 30}),
    "deit": DeiTImageProcessorPil(size={"height": 37, "width": 37}, crop_size={"height": 32, "width": 32}),
    "convnext": ConvNextImageProcessorPil(size={"shortest_edge": 48}),
    "convnext-large": ConvNextImageProcessorPil(size={"shortest_edge": 384}),
    "siglip": SiglipImageProcessorPil(size={"height": 32, "width": 32}),
}


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (41, 90), (20, 30), (7, 100)], ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_evaluation_equals_the_image_processor(name: str, size: tuple[int, int]) -> None:
    processor = PROCESSORS[name]
    image = noise(*size)
    expected = processor(images=image, return_tensors="pt")["pixel_values"][0]
    pixels = ImageTransform.from_processor(processor).evaluation(image)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    scale = 255 if name == "vit-bare" else 1
    torch.testing.assert_close(pixels / scale, expected.float() / scale, rtol=0, atol=1e-5)


def test_an_image_in_another_mode_becomes_rgb() -> None:
    transform = ImageTransform((8, 8))
    grey = noise(8, 8, mode="L")
    assert torch.equal(transform.evaluation(grey), transform.evaluation(grey.convert("RGB")))
    assert transform.training(grey, EVERY_AUGMENTATION, np.random.RandomState(0)).shape == (3, 8, 8)


def test_pixels_are_scaled_to_minus_one_and_one_by_default() -> None:
    black_and_white = Image.new("RGB", (2, 1))
    black_and_white.putpixel((1, 0), (255, 255, 255))
    pixels = ImageTransform((1, 2)).evaluation(black_and_white)
    torch.testing.assert_close(pixels, torch.tensor([-1.0, 1.0]).expand(3, 1, 2))


def test_another_image_size_keeps_the_share_that_is_cropped() -> None:
    dinov2 = BitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224})
    assert ImageTransform.from_processor(dinov2, 128).resize == 146  # METHOD 10
    assert ImageTransform.from_processor(PROCESSORS["vit"], 48).resize == (48, 48)
    deit = ImageTransform.from_processor(DeiTImageProcessorPil(), 112)
    assert (deit.resize, deit.size) == ((128, 128), (112, 112))
    for processor in PROCESSORS.values():
        assert ImageTransform.from_processor(processor, 16).evaluation(noise(50, 31)).shape == (3, 16, 16)
    with pytest.raises(ConfigurationError, match="image_size must be at least 1, got 0"):
        ImageTransform((8, 8)).resized(0)


def test_a_processor_with_other_steps_is_refused() -> None:
    class Inverting(ViTImageProcessorPil):  # type: ignore[misc]
        def rescale(self, image: Any, scale: float, **settings: Any) -> Any:
            return 1 - super().rescale(image, scale, **settings)

    with pytest.raises(ConfigurationError, match="Inverting does more"):
        ImageTransform.from_processor(Inverting())
    with pytest.raises(ConfigurationError, match="different sizes"):
        ImageTransform.from_processor(CLIPImageProcessorPil(do_center_crop=False))


def test_without_augmentations_training_equals_evaluation_and_draws_nothing() -> None:
    for processor in PROCESSORS.values():
        transform = ImageTransform.from_processor(processor)
        random = np.random.RandomState(0)
        assert torch.equal(transform.training(noise(50, 31), set(), random), transform.evaluation(noise(50, 31)))
        assert random.uniform() == np.random.RandomState(0).uniform()


def test_mirroring_mirrors_half_of_the_images() -> None:
    transform, image, random = ImageTransform((8, 8)), noise(8, 8), np.random.RandomState(0)
    plain = transform.evaluation(image)
    mirrored = 0
    for _ in range(200):
        pixels = transform.training(image, {"mirror"}, random)
        mirrored += torch.equal(pixels, plain.flip(-1))
        assert torch.equal(pixels, plain) or torch.equal(pixels, plain.flip(-1))
    assert 70 < mirrored < 130


def test_colours_change_by_brightness_then_contrast_then_colour() -> None:
    transform, image = ImageTransform((8, 8)), noise(8, 8)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = 1 + 0.4 * (2 * np.random.RandomState(5).uniform(size=3) - 1)
    for enhance, factor in zip(enhancers, factors, strict=True):
        image = enhance(image).enhance(factor)
    pixels = transform.training(noise(8, 8), {"colour"}, np.random.RandomState(5))
    assert torch.equal(pixels, transform.evaluation(image))


@given(width=st.integers(1, 60), height=st.integers(1, 60), seed=st.integers(0, 2**32 - 1))
def test_any_image_has_a_random_crop_of_the_right_size(width: int, height: int, seed: int) -> None:
    pixels = ImageTransform((16, 12)).training(noise(width, height), {"crop"}, np.random.RandomState(seed))
    assert pixels.shape == (3, 16, 12)


def test_random_crops_have_the_areas_ratios_and_places_of_the_method() -> None:
    # The image's red and green say where a pixel is, so the corners of a crop say what was cropped.
    down, across = np.mgrid[0:240, 0:240].astype(np.uint8)
    image = Image.fromarray(np.stack([down, across, down], axis=-1))
    transform = ImageTransform((48, 48), resample=Image.Resampling.NEAREST, rescale=1.0, mean=(0,) * 3, std=(1,) * 3)
    random = np.random.RandomState(0)
    boxes = []
    for _ in range(400):
        pixels = transform.training(image, {"crop"}, random)
        height = (pixels[0, -1, 0] - pixels[0, 0, 0]).item() * 48 / 47
        width = (pixels[1, 0, -1] - pixels[1, 0, 0]).item() * 48 / 47
        boxes.append((pixels[0, 0, 0].item(), pixels[1, 0, 0].item(), height, width))
    top, left, height, width = np.array(boxes).T
    area, ratio = height * width / 240**2, width / height
    assert 0.075 < area.min() < 0.12
    assert 0.85 < area.max() <= 1.03
    assert 0.72 < ratio.min() < 0.78
    assert 1.27 < ratio.max() < 1.39
    assert abs(np.log(ratio).mean()) < 0.03
    assert max(top.min(), left.min()) < 5
    assert min(top.max(), left.max()) > 120


@pytest.mark.parametrize(
    "augment", [{"crop"}, {"colour"}, {"mirror"}, EVERY_AUGMENTATION], ids=lambda names: "+".join(sorted(names))
)
def test_the_same_draws_give_the_same_pixels(augment: set[Augmentation]) -> None:
    transform = ImageTransform((16, 16))
    first, again = (transform.training(noise(20, 20), augment, np.random.RandomState(3)) for _ in range(2))
    others = [transform.training(noise(20, 20), augment, np.random.RandomState(seed)) for seed in range(4, 12)]
    assert torch.equal(first, again)
    assert any(not torch.equal(first, other) for other in others)


def test_a_pickled_transform_gives_the_same_pixels() -> None:
    transform = ImageTransform.from_processor(PROCESSORS["dinov2"])
    image = noise(50, 40)
    expected = transform.evaluation(image)
    assert torch.equal(pickle.loads(pickle.dumps(transform)).evaluation(image), expected)


def write_config(folder: Path, **config: Any) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 30, "width": 30}},
        {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 30, "width": 30}, "resample": 3},
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 30, "image_mean": [0.4, 0.5, 0.6], "resample": 2},
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 30, "crop_size": 28, "resample": 3},
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 34}, "crop_size": 30},
        {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 30, "crop_pct": 0.875},
    ],
    ids=str,
)
def test_a_models_own_processor_is_found_also_in_older_files(tmp_path: Path, config: dict[str, Any]) -> None:
    processor = AutoImageProcessor.from_pretrained(write_config(tmp_path, **config), backend="pil")
    image = noise(60, 44)
    expected = processor(images=image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(load_image_transform(tmp_path).evaluation(image), expected, rtol=0, atol=1e-5)
    assert load_image_transform(tmp_path, image_size=20).size == (20, 20)


def test_a_saved_processor_is_loaded(tmp_path: Path) -> None:
    PROCESSORS["dinov2"].save_pretrained(tmp_path)
    assert load_image_transform(str(tmp_path)) == ImageTransform.from_processor(PROCESSORS["dinov2"])


def test_a_model_without_a_processor_needs_an_image_size(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has no image processor .* give an image size"):
        load_image_transform(tmp_path)
    with pytest.warns(UserWarning, match=r"24 x 24 and pixels -1\.\.1"):
        transform = load_image_transform(tmp_path, image_size=24)
    pixels = transform.evaluation(Image.new("RGB", (50, 30), (255, 255, 255)))
    torch.testing.assert_close(pixels, torch.ones(3, 24, 24))


def test_a_repository_known_to_have_no_processor_takes_an_image_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smat_peft.episodes.images.file_exists", lambda repository, file, **_: False)
    with pytest.warns(UserWarning, match="24 x 24"):
        assert load_image_transform("someone/model", image_size=24).size == (24, 24)


@pytest.mark.parametrize("name", ["someone/model", "./no/such/folder"])
def test_a_processor_that_cannot_be_fetched_is_an_error_whatever_the_image_size(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot load the image processor of '{name}'"):
        load_image_transform(name, image_size=24)


@pytest.mark.parametrize("config", [{"image_processor_type": "NoSuchProcessor"}, {"image_processor_type": 7}], ids=str)
def test_a_processor_file_that_cannot_be_used_is_an_error(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="cannot load the image processor"):
        load_image_transform(write_config(tmp_path, **config), image_size=24)


def test_an_image_that_is_too_long_and_thin_is_refused_before_it_takes_the_memory() -> None:
    transform = ImageTransform((224, 224), resize=256)
    assert transform.evaluation(Image.new("RGB", (300, 3))).shape == (3, 224, 224)
    with pytest.raises(DataError, match="an image of 65000 x 1 is too long and thin"):
        transform.evaluation(Image.new("RGB", (65000, 1)))
