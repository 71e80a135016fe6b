"""A specialised model: an ordinary one, with an image processor and a card."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from smat_peft import SMATConfig
from smat_peft.episodes.images import ImageTransform, load_image_transform
from smat_peft.errors import CheckpointError
from smat_peft.sharing.merged import Specialisation, image_processor, save_merged
from tests.sharing.hub_server import Hub

TRANSFORM = ImageTransform((16, 16), (16, 16))
PIXELS = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.fixture
def model(make_vit: Any) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(make_vit(), SMATConfig(num_experts=3, init_weights=False)).eval()


def save(model: PeftModel, folder: Path, **changes: Any) -> ModelCard:
    save_merged(model, folder, TRANSFORM, **{"base_model": "facebook/vit", "adapter": "user/glyphs"} | changes)
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize("adapted", [True, False], ids=["to a task", "evenly mixed"])
def test_an_ordinary_model_gives_the_features_of_the_merged_one(
    model: PeftModel, tmp_path: Path, adapted: bool
) -> None:
    if adapted:
        model.adapt(PIXELS, LABELS)
    with torch.no_grad():
        expected = model(PIXELS).last_hidden_state
    save(model, tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "ViTModel"
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    with torch.no_grad():
        torch.testing.assert_close(loaded(PIXELS).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


def test_the_card_names_adapter_task_and_support_size(model: PeftModel, tmp_path: Path, hub: Hub) -> None:
    task = Specialisation("birds", 12, 3)
    card = save(model, tmp_path, specialisation=task, name="user/glyphs-merged", license="mit")
    card.validate()
    assert "`user/glyphs` makes of it for the task birds, from 12 labelled images of 3 classes" in card.text
    assert 'AutoModel.from_pretrained("user/glyphs-merged")' in card.text
    assert card.data.library_name == "transformers"
    assert (card.data.base_model, card.data.base_model_relation) == ("facebook/vit", "finetune")
    assert (card.data.pipeline_tag, card.data.license) == ("image-feature-extraction", "mit")


def test_without_a_task_the_card_says_that_experts_are_mixed_evenly(model: PeftModel, tmp_path: Path) -> None:
    card = save(model, tmp_path / "merged", base_model="/private/vit")
    assert "where its experts are mixed evenly" in card.text
    assert card.data.base_model is None
    assert "private" not in str(card)


def test_a_folder_that_cannot_be_written_is_one_error(model: PeftModel, tmp_path: Path) -> None:
    (tmp_path / "merged").write_text("a file")
    with pytest.raises(CheckpointError, match="merged"):
        save(model, tmp_path / "merged")


@pytest.mark.parametrize(
    "transform",
    [
        TRANSFORM,
        ImageTransform((16, 24)),
        ImageTransform((128, 128), (146, 146), resample=Image.Resampling.BICUBIC),
        ImageTransform((32, 32), 36, rescale=1.0, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3)),
    ],
    ids=lambda transform: f"{transform.resize} {transform.size}",
)
def test_the_image_processor_makes_the_pixels_of_the_transform(tmp_path: Path, transform: ImageTransform) -> None:
    image_processor(transform).save_pretrained(tmp_path)
    assert load_image_transform(tmp_path) == transform
    image = Image.effect_noise((150, 140), 60).convert("RGB")
    pixels = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixels, transform.evaluation(image), atol=1e-5, rtol=1e-5)
