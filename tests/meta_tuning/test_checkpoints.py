"""Checkpoints: whole or absent, and refused unless they are what was written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smat_peft.errors import CheckpointError
from smat_peft.meta_tuning.checkpoints import (
    checkpoints,
    find_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)


def save(folder: Path, step: int = 1) -> Path:
    return save_checkpoint(
        folder, step, {"weight": torch.arange(6.0).view(2, 3).T}, {"step": step, "log": [0.1]}, {"seed": 7}
    )


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    assert folder == tmp_path / "checkpoint-3"
    tensors, state, run = load_checkpoint(folder)
    assert torch.equal(tensors["weight"], torch.arange(6.0).view(2, 3).T)
    assert state == {"step": 3, "log": [0.1]}
    assert run == {"seed": 7}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    (save(tmp_path) / "left over").touch()
    assert not (save(tmp_path) / "left over").exists()


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"),
    ],
    ids=["missing", "shorter", "altered"],
)
def test_a_file_that_is_not_what_was_written_is_named(tmp_path: Path, name: str, damage: Any) -> None:
    folder = save(tmp_path)
    damage(folder / name)
    with pytest.raises(CheckpointError, match=f"{name} is not what was written"):
        load_checkpoint(folder)


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path)
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-1 is not a checkpoint: it has no manifest\.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 2, "files": {}, "run": {}}', "\x00", "[" * 9999])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path)
    (folder / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        load_checkpoint(folder)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path)
    change_manifest(folder, lambda manifest: manifest.update(format_version=3))
    with pytest.raises(CheckpointError, match=r"a newer smat_peft \(format 3\)"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "content"), [("tensors.safetensors", b"PK"), ("state.json", b"{"), ("state.json", b"7")]
)
def test_files_that_are_no_checkpoints_are_an_error_though_the_manifest_knows_them(
    tmp_path: Path, name: str, content: bytes
) -> None:
    folder = save(tmp_path)
    (folder / name).write_bytes(content)
    written = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change_manifest(folder, lambda manifest: manifest["files"].update({name: written}))
    with pytest.raises(CheckpointError, match="checkpoint-1 holds other files"):
        load_checkpoint(folder)


def test_the_latest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        save(tmp_path, step)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-10"
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoint-2")) == tmp_path / "checkpoint-2"


def test_where_there_is_none_the_latest_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="holds no checkpoint to resume from; start without"):
            find_checkpoint(folder, "latest")


def test_an_interruption_while_writing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-1"
    save(tmp_path, 2)
    assert load_checkpoint(find_checkpoint(tmp_path, "latest"))[1]["step"] == 2


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    write_text = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda self, text: written.append(self.name) or write_text(self, text))
    save(tmp_path)
    assert written == ["state.json", "manifest.json"]


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step)
    (tmp_path / "checkpoint-notes").mkdir()
    prune_checkpoints(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2", "checkpoint-notes"]
    prune_checkpoints(tmp_path, 5)
    assert len(checkpoints(tmp_path)) == 2
    shutil.rmtree(tmp_path / "checkpoint-10")
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-2"
    prune_checkpoints(tmp_path, 0)
    assert checkpoints(tmp_path) == []
