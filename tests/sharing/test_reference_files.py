"""Checkpoints are found in files, folders and repositories; of a pickle nothing but tensors is ever read."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from smat_peft.errors import CheckpointError
from smat_peft.sharing import reference_files
from smat_peft.sharing.reference_files import read_reference_checkpoint

STATE = {"weight": torch.arange(6.0).reshape(2, 3)}


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def old_form(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def bare_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))  # the one that torch.load expects


@pytest.mark.parametrize("save", [torch.save, old_form, bare_pickle])
@pytest.mark.parametrize("wrap", [lambda payload: payload, lambda payload: {"model": STATE, "scheduler": payload}])
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(save: Any, wrap: Any, tmp_path: Path) -> None:
    sign = tmp_path / "executed"
    save(wrap(Payload(sign)), tmp_path / "smat.pt")
    with pytest.raises(CheckpointError, match="is refused: it is a pickle of more than tensors") as caught:
        read_reference_checkpoint(tmp_path / "smat.pt")
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not sign.exists()
    if save is torch.save:
        torch.load(tmp_path / "smat.pt", weights_only=False)  # this is what it would have done
        assert sign.exists()


@pytest.mark.parametrize("save", [torch.save, old_form])
def test_a_training_checkpoint_and_a_state_dict_are_read(save: Any, tmp_path: Path) -> None:
    for content, others in (
        ({"model": STATE, "optimizer": {"state": {}}, "scheduler": None}, ("optimizer", "scheduler")),
        (STATE | {"version": 3}, ("version",)),
    ):
        save(content, tmp_path / "smat.pt")
        checkpoint = read_reference_checkpoint(tmp_path / "smat.pt")
        assert checkpoint.others == others
        assert list(checkpoint.tensors) == ["weight"]
        assert torch.equal(checkpoint.tensors["weight"], STATE["weight"])


def test_a_folder_with_one_checkpoint_is_enough(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("a card")
    save_file(STATE, tmp_path / "smat.safetensors")
    assert torch.equal(read_reference_checkpoint(tmp_path).tensors["weight"], STATE["weight"])


def test_of_several_checkpoints_one_is_named(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "best.pt")
    save_file(STATE, tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match=r"filename say which: best\.pt, last\.safetensors"):
        read_reference_checkpoint(tmp_path)
    assert len(read_reference_checkpoint(tmp_path, filename="best.pt").tensors["weight"]) == 1
    with pytest.raises(CheckpointError, match=r"holds no file 'worst\.pt'"):
        read_reference_checkpoint(tmp_path, filename="worst.pt")


def test_a_repository_is_fetched_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetch(repo: str, **settings: Any) -> str:
        asked.update(settings, repo=repo)
        return str(tmp_path)

    torch.save(STATE, tmp_path / "best.pt")
    monkeypatch.setattr(reference_files, "snapshot_download", fetch)
    checkpoint = read_reference_checkpoint("someone/smat", revision="v1", token="secret")
    assert checkpoint.source == "someone/smat"
    assert list(checkpoint.tensors) == ["weight"]
    patterns = ["*.safetensors", "*.pt", "*.pth", "*.bin"]
    assert asked == {"repo": "someone/smat", "revision": "v1", "token": "secret", "allow_patterns": patterns}
    read_reference_checkpoint("someone/smat", filename="best.pt")
    assert asked["allow_patterns"] == ["best.pt"]


@pytest.mark.parametrize("name", ["someone/smat", "no/such/file.pt"])
def test_what_is_neither_here_nor_on_the_hub_is_one_clear_error(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"cannot load checkpoint '{name}', neither a file here nor on the Hub"):
        read_reference_checkpoint(name)


def test_a_damaged_file_is_one_clear_error(tmp_path: Path) -> None:
    for name in ("smat.safetensors", "smat.pt"):
        (tmp_path / name).write_bytes(b"damaged")
        with pytest.raises(CheckpointError, match=rf"cannot load .*{name}|{name} is refused"):
            read_reference_checkpoint(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(CheckpointError, match=r"cannot load .*zip\.pt"):
        read_reference_checkpoint(tmp_path / "zip.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(2), "holds no state dict but an object of type Tensor"),
        ({"model": [1]}, "no state dict but .* list"),
    ],
)
def test_what_is_no_state_dict_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "smat.pt")
    with pytest.raises(CheckpointError, match=message):
        read_reference_checkpoint(tmp_path / "smat.pt")
