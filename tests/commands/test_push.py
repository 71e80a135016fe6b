"""`meta_tune --push_to_hub --save_merged`: from a run to a repository, and from there to the same predictions."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, parse_eval_result_entries
from PIL import Image
from yaml import safe_load

from smat_peft.commands.class_folders import read_examples
from smat_peft.commands.classify import main as classify
from smat_peft.commands.meta_tune import main
from smat_peft.few_shot import FewShotClassifier
from tests.commands.small_run import words
from tests.processes import python
from tests.sharing.hub_server import READER, WRITER, Hub

# The client's own, where it uploads a large file without Xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

QUICK = {"max_steps": 1, "evaluation_episodes": 2, "validation_steps": 0, "push_to_hub": True}
ADAPTER_FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "curves.png", "metrics.json"}
FRESH_PROCESS = """
import json, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
{imports}
support, name, token = sys.argv[1:]
paths = sorted(Path(support).glob("*/*.png"))
{load}
print(json.dumps(outputs.tolist()))
"""
CLASSIFIER = {
    "imports": "from smat_peft import FewShotClassifier",
    "load": "classifier = FewShotClassifier.from_pretrained(name, token=token)\n"
    "outputs = classifier.fit(paths, [path.parent.name for path in paths]).predict_proba(paths)",
}
TRANSFORMERS_ALONE = {
    "imports": "from PIL import Image\nfrom transformers import AutoImageProcessor, AutoModel",
    "load": "processor = AutoImageProcessor.from_pretrained(name, token=token, backend='pil')\n"
    "pixels = processor([Image.open(path) for path in paths], return_tensors='pt')\n"
    "with torch.no_grad():\n"
    "    outputs = AutoModel.from_pretrained(name, token=token)(**pixels).last_hidden_state\n"
    "assert not any(module.partition('.')[0] == 'smat_peft' for module in sys.modules)",
}


def in_a_fresh_process(hub: Hub, tmp_path: Path, script: dict[str, str], support: Path, name: str) -> torch.Tensor:
    variables = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "fresh"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    ended = python("-c", FRESH_PROCESS.format(**script), support, name, WRITER, **variables)
    assert ended.returncode == 0, ended.stderr
    return torch.tensor(json.loads(ended.stdout))


def test_what_is_pushed_classifies_like_what_was_trained(hub: Hub, world: Path, tmp_path: Path, capsys: Any) -> None:
    run, support = tmp_path / "glyphs", world / "other"
    settings = QUICK | {"hub_token": WRITER, "hub_private_repo": True, "save_merged": support, "license": "mit"}
    settings |= {"max_steps": 4, "checkpointing_steps": 2, "pack": True}
    assert main([*words(world, run, **settings), "--datasets", "mnist", "cifar10"]) == 0
    printed = capsys.readouterr().out
    names = ("glyphs", "glyphs-packed", "glyphs-merged")
    adapter, packed, merged = (hub.repositories[f"user/{name}"] for name in names)
    pushed = [line.split("/commit/")[0] for line in printed.splitlines()[-3:]]
    assert pushed == [f"Pushed to {hub.url}/user/{name}" for name in names]
    assert set(adapter.files) == ADAPTER_FILES
    assert set(packed.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert set(merged.files) == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    for repository in (adapter, packed, merged):
        assert repository.private
        assert [commit.message for commit in repository.commits] == ["End of training"]
        assert not any(WRITER.encode() in content for content in repository.files.values())
    for folder, repository in ((run, adapter), (run / "packed", packed), (run / "merged", merged)):
        for name, content in repository.files.items():
            assert (folder / name).read_bytes() == content

    card = ModelCard(adapter.files["README.md"].decode())
    card.validate()
    assert (card.data.license, card.data.datasets) == ("mit", ["mnist", "cifar10"])
    assert '"vit", adapter="user/glyphs"' in card.text  # its backbone is a folder that others do not have
    form = ModelCard(packed.files["README.md"].decode())
    form.validate()
    assert "inference form, which cannot be trained" in form.text
    assert '"vit", adapter="user/glyphs-packed"' in form.text
    about = ModelCard(merged.files["README.md"].decode()).text
    assert "`user/glyphs` makes of it for the task other, from 24 labelled images of 6 classes" in about

    examples = read_examples(support, skip=False)
    trained = FewShotClassifier.from_pretrained(run).fit(examples.paths, examples.classes)
    expected = torch.from_numpy(trained.predict_proba(examples.paths))
    torch.testing.assert_close(
        in_a_fresh_process(hub, tmp_path, CLASSIFIER, support, "user/glyphs"), expected, check_dtype=False
    )
    from_packed = in_a_fresh_process(hub, tmp_path, CLASSIFIER, support, "user/glyphs-packed")
    torch.testing.assert_close(from_packed, expected, check_dtype=False, atol=1e-2, rtol=0)
    assert torch.equal(from_packed.argmax(1), expected.argmax(1))
    pixels = torch.stack([trained.transform_.evaluation(image) for image in map(Image.open, examples.paths)])
    labels = torch.tensor([sorted(set(examples.classes)).index(name) for name in examples.classes])
    with torch.no_grad():
        evenly_mixed = trained.model_(pixels).last_hidden_state
        trained.model_.adapt(pixels, labels)
        features = trained.model_(pixels).last_hidden_state
    assert not torch.allclose(evenly_mixed, features, atol=1e-3)  # or the next comparison would say little
    torch.testing.assert_close(
        in_a_fresh_process(hub, tmp_path, TRANSFORMERS_ALONE, support, "user/glyphs-merged"),
        features,
        atol=1e-5,
        rtol=1e-5,
    )


def test_an_adapter_on_the_hub_labels_images_at_a_revision(hub: Hub, world: Path, tmp_path: Path, capsys: Any) -> None:
    settings = {"hub_token": WRITER, "hub_model_id": "user/letters", "hub_revision": "v1", "hub_private_repo": True}
    assert main(words(world, tmp_path / "run", **QUICK | settings, save_merged="even")) == 0
    assert hub.repositories["user/letters"].files == {}
    assert set(hub.repositories["user/letters"].branches["v1"]) == ADAPTER_FILES
    about = hub.repositories["user/letters-merged"].branches["v1"]["README.md"].decode()
    assert "where its experts are mixed evenly" in about
    capsys.readouterr()
    names = ["--model", "user/letters", "--revision", "v1", "--token", WRITER]
    assert classify([str(world / "other"), str(world / "other"), *names]) == 0
    pushed = capsys.readouterr().out
    assert classify([str(world / "other"), str(world / "other"), "--model", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == pushed
    assert classify([str(world / "other"), "--model", "user/letters", "--token", READER]) == 2
    assert "cannot load model 'user/letters'" in capsys.readouterr().err


def test_the_demo_s_card_and_evaluation_results_are_valid(hub: Hub, world: Path, tmp_path: Path) -> None:
    domains = {"train_domains": "builtin:flags", "ood_domains": "builtin:digits"}
    settings = QUICK | domains | {"hub_token": WRITER, "model_name_or_path": "demo-vit", "license": "apache-2.0"}
    assert main(words(world, tmp_path / "run", **settings)) == 0
    files = hub.repositories["user/run"].files
    assert set(files) == ADAPTER_FILES | {".eval_results/flags.yaml", ".eval_results/digits.yaml"}
    card = ModelCard(files["README.md"].decode())
    card.validate()
    assert (card.data.base_model, card.data.base_model_relation) == ("demo-vit", "adapter")
    assert [result.dataset_config for result in card.data.eval_results] == ["flags", "digits"]
    assert 'FewShotClassifier.from_pretrained("user/run")' in card.text
    (entry,) = parse_eval_result_entries(safe_load(files[".eval_results/digits.yaml"]))
    accuracy = json.loads(files["metrics.json"])["evaluation"]["domains"]["digits"]["accuracy"]["SMAT"]
    assert (entry.dataset_id, entry.task_id, entry.value) == (
        "smat-peft/builtin",
        "digits",
        round(accuracy["mean"], 4),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs a token: run `hf auth login`"),
        ({"hub_token": WRITER, "hub_model_id": "a--b"}, "'a--b' cannot be the name of a repository"),
        ({"hub_token": WRITER, "hub_model_id": "u/" + 93 * "a", "save_merged": "even"}, "a-merged' cannot be the name"),
        ({"hub_token": READER}, "cannot push to run: .*403"),
        ({"hub_token": WRITER, "hub_model_id": "other/run"}, "cannot push to other/run: .*403"),
        ({"hub_token": "hf_old"}, "cannot push to run: .*401"),
        ({"push_to_hub": None, "save_merged": "/nowhere"}, "/nowhere is not a folder"),
        ({"push_to_hub": None, "save_merged": "WORLD/other", "method": "lora"}, "needs experts to mix; use even"),
        ({"push_to_hub": None, "pack": True, "method": "lora"}, "--pack needs an adapter of SMAT's kind"),
    ],
)
@pytest.mark.usefixtures("untrained")
def test_what_cannot_be_shared_is_one_error_before_the_training(
    hub: Hub, world: Path, tmp_path: Path, capsys: Any, arguments: dict[str, Any], message: str
) -> None:
    places = {
        name: value.replace("WORLD", str(world)) if isinstance(value, str) else value
        for name, value in arguments.items()
    }
    assert main(words(world, tmp_path / "run", **QUICK | places)) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)
    assert hub.waits == []


def test_a_dry_run_makes_no_repository(hub: Hub, world: Path, tmp_path: Path) -> None:
    assert main(words(world, tmp_path / "run", **QUICK, hub_token=WRITER, dry_run=True)) == 0
    assert hub.requests == []


def test_a_refusal_at_the_end_says_how_to_push_later(hub: Hub, world: Path, tmp_path: Path, capsys: Any) -> None:
    hub.fail("/commit/", 403)
    assert main(words(world, tmp_path / "run", **QUICK, hub_token=WRITER)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: cannot push to user/run: 403")
    assert f"`hf upload user/run {tmp_path / 'run'} . --include 'adapter_*'" in line
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_an_even_mix_of_any_method_is_merged(world: Path, tmp_path: Path, hub: Hub) -> None:
    settings = {"max_steps": 1, "evaluation_episodes": 0, "validation_steps": 0, "save_merged": "even"}
    assert main(words(world, tmp_path / "run", **settings, method="lora")) == 0
    assert (tmp_path / "run" / "merged" / "model.safetensors").exists()
    assert hub.requests == []
