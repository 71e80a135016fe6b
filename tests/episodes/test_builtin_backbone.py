"""The demo's backbone: what is packaged, and the script that made it."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, ViTModel

from smat_peft.assets import demo_backbone
from smat_peft.episodes.builtin import builtin_names, load_builtin
from smat_peft.episodes.images import load_image_transform
from smat_peft.evaluation.protocol import EvaluationDomain, evaluate

SCRIPT = Path(__file__).parents[2] / "examples" / "pretrain_backbone.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("pretrain_backbone", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_packaged_folder_is_small_and_whole():
    files = {file.name: file.stat().st_size for file in demo_backbone().iterdir()}
    assert set(files) == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert sum(files.values()) < 6e6


def test_the_packaged_backbone_loads_without_missing_or_surplus_weights():
    model, report = ViTModel.from_pretrained(demo_backbone(), add_pooling_layer=False, output_loading_info=True)
    assert not any(report.values())
    assert 1e6 < model.num_parameters() < 2e6
    assert (model.config.image_size, model.config.hidden_dropout_prob) == (32, 0.0)


def test_its_image_processor_loads_and_leaves_the_suites_images_in_their_size():
    processor = AutoImageProcessor.from_pretrained(demo_backbone(), backend="pil")
    image = load_builtin("greek").class_images["Σ"][0]
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixels[0], load_image_transform(demo_backbone()).evaluation(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "split"), [("greek", "test"), ("digits", "all"), ("flags", "all")])
def test_it_knows_more_than_chance_of_classes_that_it_never_saw_and_not_all(name, split):
    model = ViTModel.from_pretrained(demo_backbone(), add_pooling_layer=False)
    evaluation = evaluate(
        model,
        [EvaluationDomain("id", load_builtin(name), split)],
        transform=load_image_transform(demo_backbone()),
        episodes=10,
        ways=5,
        shots=5,
        progress=False,
    )
    assert 0.5 < evaluation.accuracy("backbone", name).mean < 0.99  # chance is 0.2


def test_its_card_says_how_it_was_made_and_how_good_it_is():
    card = (demo_backbone() / "README.md").read_text(encoding="utf-8")
    assert "python examples/pretrain_backbone.py" in card
    assert [name for name in builtin_names() if f"| {name} " not in card] == []


def test_distortions_of_no_strength_change_nothing_and_of_full_strength_stay_in_range(script):
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    same = script.augment(images, 0.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(same, images, rtol=0, atol=1e-5)
    other = script.augment(images, 1.0, torch.Generator().manual_seed(0))
    assert not torch.allclose(other, images, atol=0.1)
    assert other.abs().max() <= 1


def test_the_script_learns_its_classes_and_leaves_a_folder_that_loads(script, tmp_path, monkeypatch):
    colours = torch.tensor([[250, 10, 10], [10, 250, 10], [10, 10, 250]], dtype=torch.uint8)
    labels = torch.arange(3).repeat(8)
    monkeypatch.setattr(
        script, "draw_classes", lambda: (colours[labels][:, :, None, None].repeat(1, 1, 32, 32), labels)
    )
    monkeypatch.setattr(script, "measure", lambda model, episodes: f"a table of {episodes} episodes")
    arguments = ["--output_dir", str(tmp_path), "--steps", "12", "--batch_size", "8", "--episodes", "3"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    script.main()

    model = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False)
    with torch.no_grad():
        images = colours[:, :, None, None].repeat(1, 1, 32, 32).float() / 127.5 - 1
        units = torch.nn.functional.normalize(model(images).last_hidden_state[:, 0], dim=1)
    assert (units @ units.T - torch.eye(3)).max() < 0.7  # classes apart
    assert "a table of 3 episodes" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert AutoImageProcessor.from_pretrained(tmp_path, backend="pil").size == {"height": 32, "width": 32}
