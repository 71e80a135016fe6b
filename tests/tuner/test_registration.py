"""PEFT knows the method, and nothing else of PEFT has changed."""

from __future__ import annotations

import enum
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
from peft import mapping
from peft.utils import peft_types

from smat_peft import SMATConfig, SMATModel, register
from smat_peft.tuner.config import SMATPeftType

ROOT = Path(__file__).parents[2]


def mappings() -> list[dict[str, Any]]:
    named = ("CONFIG", "TUNER", "PREFIX", "MIXED_MODEL")
    return [dict(getattr(mapping, f"PEFT_TYPE_TO_{name}_MAPPING")) for name in named]


def test_peft_finds_the_method_by_member_and_by_name() -> None:
    for key in ("SMAT", SMATPeftType.SMAT, SMATConfig().peft_type):
        assert mapping.PEFT_TYPE_TO_CONFIG_MAPPING[key] is SMATConfig
        assert mapping.PEFT_TYPE_TO_TUNER_MAPPING[key] is SMATModel
        assert mapping.PEFT_TYPE_TO_PREFIX_MAPPING[key] == "smat_"


def test_registering_again_changes_nothing() -> None:
    before = mappings()
    register()
    assert mappings() == before


def test_pefts_own_enumeration_is_left_as_it_is() -> None:
    register()
    assert peft_types.PeftType is peft.PeftType
    assert "SMAT" not in peft.PeftType.__members__
    with pytest.raises(ValueError, match="SMAT"):
        peft.PeftType("SMAT")


def test_the_enumeration_is_given_back_where_registering_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_settings: Any) -> None:
        assert peft_types.PeftType is SMATPeftType
        raise TypeError("refused")

    monkeypatch.delitem(mapping.PEFT_TYPE_TO_CONFIG_MAPPING, "SMAT")
    monkeypatch.setattr(peft_types, "register_peft_method", refuse)
    with pytest.raises(TypeError, match="refused"):
        register()
    assert peft_types.PeftType is peft.PeftType


def test_a_peft_with_a_method_of_that_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    members = {name: member.value for name, member in peft.PeftType.__members__.items()}
    later = enum.Enum("PeftType", members | {"SMAT": "SMAT"}, type=str)  # type: ignore[misc]
    monkeypatch.setattr(peft_types, "PeftType", later)
    before = mappings()
    with pytest.raises(ImportError, match="a method called SMAT of its own"):
        register()
    assert mappings() == before


def test_a_pickled_configuration_loads_where_the_package_is_not_imported_yet(tmp_path: Path) -> None:
    path = tmp_path / "config.pickle"
    path.write_bytes(pickle.dumps(SMATConfig(num_experts=3)))
    script = f"""
import pickle, sys
assert "smat_peft" not in sys.modules
config = pickle.load(open({str(path)!r}, "rb"))
print(config.num_experts, config.peft_type == "SMAT", type(config.peft_type).__name__)
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["3", "True", "SMATPeftType"], ran.stderr
