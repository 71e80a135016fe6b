"""The card of an adapter: what the Hub reads in its head, and what a user reads in its body."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model

from smat_peft.errors import ConfigurationError
from smat_peft.sharing.model_card import write_model_card

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
    data = card_in(tmp_path / "glyphs", tags=["vision"], license="apache-2.0", datasets=["mnist"]).data
    assert data.library_name == "peft"
    assert data.base_model == "facebook/dino-vits16"
    assert data.base_model_relation == "adapter"
    assert data.pipeline_tag == "image-classification"
    assert data.tags == ["smat", "few-shot-learning", "meta-learning", "vision"]
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
    assert "import smat_peft\n" in text
    assert "2403.08477" in text


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
