"""Files that earlier versions wrote load, and mean what they meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from smat_peft.meta_tuning.checkpoints import load_checkpoint
from tests.sharing.write_formats import EXPECTED, FORMATS, changes, smallest_vit

VERSIONS = sorted(FORMATS.iterdir())


@pytest.mark.parametrize("kind", ["trainable", "packed", "task"])
@pytest.mark.parametrize("version", VERSIONS, ids=[version.name for version in VERSIONS])
def test_an_adapter_of_an_earlier_version_changes_the_backbone_as_it_did(version: Path, kind: str) -> None:
    model = PeftModel.from_pretrained(smallest_vit(), version / kind).eval()
    expected, found = load_file(version / kind / EXPECTED), changes(model)
    assert found.keys() == expected.keys()
    assert any(tensor.any() for tensor in expected.values())
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("version", VERSIONS, ids=[version.name for version in VERSIONS])
def test_a_checkpoint_of_an_earlier_version_is_read(version: Path) -> None:
    tensors, state, _ = load_checkpoint(version / "checkpoint-3")
    assert tensors["tensor"].tolist() == [0, 1, 2]
    assert state == {"step": 3, "best": 0.5}
