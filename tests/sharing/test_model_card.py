"""The card of an adapter: what the Hub reads in its head, and what a user reads in its body."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import ViTImageProcessorPil

from smat_peft import SMATConfig
from smat_peft.assets import DEMO_BACKBONE
from smat_peft.episodes.images import load_image_transform
from smat_peft.errors import ConfigurationError
from smat_peft.few_shot import load_backbone
from smat_peft.sharing.model_card import write_model_card
from tests.sharing.hub_server import Hub

TABLE = "| domain | backbone | SMAT |\n|---|---|---|\n| greek | 61.2 ± 1.0 | 72.5 ± 0.9 |"


def card_in(folder: Path, **changes: Any) -> ModelCard:
    arguments: dict[str, Any] = {
        "base_model": "facebook/dino-vits16",
        "table_markdown": TABLE,
        "metrics": {"greek": 0.725, "digits": 0.5},
        "settings": {"max_steps": 150, "method": "smat"},
        "sparsity": [0.91, 0.89],
    }
    path = write_model_card(folder, **arguments | changes)
    assert path == folder / "README.md"
    return ModelCard.load(path)


def test_the_hub_is_told_what_the_adapter_is(tmp_path: Path) -> None:
    data = card_in(tmp_path / "glyphs", license="apache-2.0", datasets=["mnist"]).data
    assert data.library_name == "peft"
    assert data.base_model == "facebook/dino-vits16"
    assert data.base_model_relation == "adapter"
    assert data.pipeline_tag == "image-classification"
    assert data.tags == ["smat", "few-shot-learning", "meta-learning"]
    assert data.license == "apache-2.0"
    assert data.datasets == ["mnist"]


def test_the_hub_is_told_the_accuracies(tmp_path: Path) -> None:
    data = card_in(tmp_path / "glyphs").data
    assert data.model_name == "glyphs"
    assert [(found.dataset_name, found.metric_type, found.metric_value) for found in data.eval_results] == [
        ("greek", "accuracy", 0.725),
        ("digits", "accuracy", 0.5),
    ]


def test_what_is_not_given_is_not_in_the_head(tmp_path: Path) -> None:
    head = card_in(tmp_path, metrics={}).data.to_dict()
    assert {"license", "datasets", "model-index"}.isdisjoint(head)


def test_a_user_reads_table_sparsity_note_and_how_to_use_it(tmp_path: Path) -> None:
    text = card_in(tmp_path / "glyphs", note="For glyphs only.").text
    assert TABLE in text
    assert "0.910, 0.890" in text
    assert "For glyphs only." in text
    assert 'FewShotClassifier.from_pretrained("glyphs")' in text
    assert 'AutoModel.from_pretrained("facebook/dino-vits16")' in text
    assert "import smat_peft\n" in text
    assert "2403.08477" in text


def test_a_card_on_the_hub_says_where_and_passes_the_client_s_validation(hub: Hub, tmp_path: Path) -> None:
    card = card_in(tmp_path, name="user/glyphs", license="mit", datasets=["mnist"], origins={"greek": "builtin:greek"})
    card.validate()
    assert card.data.model_name == "glyphs"
    assert 'from_pretrained("user/glyphs")' in card.text
    assert hub.requests[-1] == "POST /api/validate-yaml"
    card.data["base_model_relation"] = "cousin"
    with pytest.raises(ValueError, match="base_model_relation is unknown"):
        card.validate()


def test_data_sets_of_the_hub_are_called_as_they_are_there(tmp_path: Path) -> None:
    found = card_in(tmp_path, origins={"greek": "hub:someone/letters:greek@test", "digits": "folder:/private"})
    assert [
        (result.dataset_name, result.dataset_type, result.dataset_config) for result in found.data.eval_results
    ] == [
        ("greek", "someone/letters", "greek"),
        ("digits", "digits", None),
    ]


def test_the_image_size_and_the_adapter_s_own_size_are_told(tmp_path: Path) -> None:
    assert "The adapter takes" not in card_in(tmp_path).text
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(1_260_000))
    text = card_in(tmp_path, image_size=128).text
    assert "The adapter takes 1.3 MB." in text
    assert f'FewShotClassifier.from_pretrained("{tmp_path.name}", image_size=128)' in text


@pytest.mark.parametrize("base_model", [DEMO_BACKBONE, "FOLDER"])
def test_the_python_of_a_card_runs(
    tmp_path: Path, make_vit: Any, monkeypatch: pytest.MonkeyPatch, base_model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if base_model == "FOLDER":
        make_vit().save_pretrained("vit")
        ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained("vit")
        base_model = "vit"
    get_peft_model(load_backbone(base_model), SMATConfig(num_experts=2)).save_pretrained(
        "glyphs", save_embedding_layers=False
    )
    text = card_in(tmp_path / "glyphs", base_model=base_model).text
    size = load_image_transform(base_model).size
    names: dict[str, Any] = {"images": [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]}
    names |= {"labels": ["red", "blue"], "other_images": names["images"]}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
        names |= {"pixel_values": torch.rand(4, 3, *size), "labels": torch.tensor([0, 0, 1, 1])}
    assert names["model"].peft_config["default"].num_experts == 2
    assert names["classifier"].classes_.tolist() == ["blue", "red"]


def test_the_settings_can_be_read_back_from_the_card(tmp_path: Path) -> None:
    settings = {"learning_rate": 5e-4, "train_domains": ["builtin:greek"], "resume": None, "recipe": Path("demo.yaml")}
    block = card_in(tmp_path, settings=settings).text.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(block) == settings | {"recipe": "demo.yaml"}


def test_nothing_in_the_values_is_taken_for_a_template(tmp_path: Path) -> None:
    text = card_in(tmp_path, note="{{ 6 * 7 }}", table_markdown="{% for x in y %}").text
    assert "{{ 6 * 7 }}" in text
    assert "{% for x in y %}" in text


@pytest.mark.parametrize("make", [True, False], ids=["a folder that exists", "a path that does not"])
def test_a_backbone_on_this_machine_is_called_by_its_name_alone(tmp_path: Path, make: bool) -> None:
    backbone = tmp_path / "private" / "demo-vit"
    if make:
        backbone.mkdir(parents=True)
    card = card_in(tmp_path / "out", base_model=str(backbone))
    assert card.data.base_model is None
    assert "base_model_relation" not in card.data.to_dict()
    assert '"demo-vit"' in card.text
    assert "private" not in str(card)


@pytest.mark.parametrize(
    "changes", [{"metrics": {"greek": 72.5}}, {"metrics": {"greek": float("nan")}}, {"sparsity": [0.9, -0.1]}]
)
def test_a_share_out_of_range_is_refused_before_anything_is_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"greek|sparsity of expert 1"):
        card_in(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_our_card_replaces_peft_s_and_lives_through_another_save(tmp_path: Path, make_vit: Any) -> None:
    model = get_peft_model(make_vit(), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    before = card_in(tmp_path)
    assert "More Information Needed" not in before.text
    model.save_pretrained(tmp_path)
    after = ModelCard.load(tmp_path / "README.md")
    assert TABLE in after.text
    assert after.data.eval_results == before.data.eval_results
