"""The package as a whole: what it ships, what it needs, which room imports which, and what it never does."""

import ast
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

from smat_peft.version import __version__
from tests.processes import python

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "smat_peft"
SOURCES = sorted(PACKAGE.rglob("*.py"))

ROOMS = ("experts", "episodes", "tuner", "meta_tuning", "few_shot", "evaluation", "sharing", "commands")
WITHOUT_TRAINING = ("experts", "episodes")
FOUNDATIONS = (
    "assets",
    "errors",
    "files",
    "kinds",
    "requirements",
    "version",
)  # any room may import them, and they import no room
PICKLERS = ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")


def absolute_imports(source: str, module: str) -> Iterator[str]:
    """Dotted names that `source`, the text of the package's `module`, imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def wrong_imports(source: str, module: str) -> list[str]:
    """Imports against the order of the rooms, one sentence each."""
    place = module.split(".")[1] if "." in module else ""
    wrong = []
    for name in absolute_imports(source, module):
        if place in WITHOUT_TRAINING and name.split(".")[0] in ("peft", "accelerate"):
            wrong.append(f"{module} imports {name}, but {place} knows nothing of PEFT or of training")
        if name.split(".")[0] != "smat_peft" or place not in (*ROOMS, *FOUNDATIONS):
            continue  # the top level and the commands' entry points may use every room
        target = [*name.split("."), ""][1]
        if target in FOUNDATIONS or target == place:
            continue
        above = ROOMS[: ROOMS.index(place)] if place in ROOMS else ()
        if target not in above or (place in WITHOUT_TRAINING and target in WITHOUT_TRAINING):
            wrong.append(f"{module} imports {name}, which is not above it")
    return wrong


def unsafe_reads(source: str) -> list[str]:
    """Calls and imports that could execute what a file contains."""
    unsafe = [name for name in absolute_imports(source, "smat_peft") if name.split(".")[0] in PICKLERS]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        call = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if call == "torch.load" and given.get("weights_only") != "True":
            unsafe.append(f"{call} without weights_only=True in line {node.lineno}")
        if call in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
            unsafe.append(f"{call} with allow_pickle in line {node.lineno}")
        if call in ("yaml.load", "yaml.full_load", "yaml.unsafe_load"):
            unsafe.append(f"{call} in line {node.lineno}: use yaml.safe_load")
    return unsafe


def module_name(path: Path) -> str:
    # A package's own __init__ keeps its last part, so that a level of relative import means the same in every file.
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_a_room_imports_only_rooms_above_it(path: Path) -> None:
    assert wrong_imports(path.read_text(encoding="utf-8"), module_name(path)) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("smat_peft.experts.gates", "from smat_peft.tuner.layer import SMATLayer"),
        ("smat_peft.experts.gates", "from ..episodes import Episode"),
        ("smat_peft.experts.gates", "import peft"),
        ("smat_peft.episodes.sampling", "from accelerate.utils import set_seed"),
        ("smat_peft.episodes.sampling", "import smat_peft.experts.gates"),
        ("smat_peft.tuner.__init__", "from .. import meta_tuning"),
        ("smat_peft.tuner.model", "def f():\n    from smat_peft.few_shot.classifier import FewShotClassifier"),
        ("smat_peft.evaluation.protocol", "from smat_peft import SMATConfig"),
        ("smat_peft.sharing.packed", "import smat_peft.meta_tune"),
        ("smat_peft.errors", "from smat_peft.experts import gates"),
        ("smat_peft.assets.__init__", "from smat_peft.few_shot.loading import load_backbone"),
    ],
)
def test_an_import_against_the_order_is_seen(module: str, line: str) -> None:
    assert len(wrong_imports(line, module)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("smat_peft.experts.router", "from smat_peft.experts.gates import gate_values"),
        ("smat_peft.experts.router", "from . import gates"),
        ("smat_peft.episodes.sampling", "from transformers import AutoImageProcessor"),
        ("smat_peft.tuner.model", "from smat_peft.experts import router\nfrom peft import PeftConfig"),
        ("smat_peft.commands.meta_tune", "from smat_peft.sharing.model_card import write_model_card"),
        ("smat_peft.__init__", "from smat_peft.tuner import SMATConfig"),
        ("smat_peft.meta_tune", "from smat_peft.commands.meta_tune import main"),
        ("smat_peft.episodes.domain", "from smat_peft.errors import DataError"),
        ("smat_peft.few_shot.loading", "from smat_peft.assets import backbone_source"),
    ],
)
def test_an_import_along_the_order_is_allowed(module: str, line: str) -> None:
    assert wrong_imports(line, module) == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_nothing_is_unpickled(path: Path) -> None:
    assert unsafe_reads(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('a')",
        "import torch\ntorch.load('a', weights_only=False)",
        "import numpy as np\nnp.load('a', allow_pickle=True)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
    ],
)
def test_a_read_that_could_execute_something_is_seen(source: str) -> None:
    assert len(unsafe_reads(source)) == 1


def test_the_version_is_written_in_one_place(built: Path) -> None:
    texts = [*SOURCES, ROOT / "setup.cfg", ROOT / "pyproject.toml"]
    assert [path.name for path in texts if __version__ in path.read_text(encoding="utf-8")] == ["version.py"]
    assert f"smat_peft-{__version__}.dist-info/METADATA" in names_in_wheel(built)


def test_every_module_imports_without_torchvision() -> None:
    program = """
import importlib, pkgutil, sys

sys.modules["torchvision"] = None  # it cannot be imported, and importlib says that it is not there
import smat_peft

modules = [found.name for found in pkgutil.walk_packages(smat_peft.__path__, "smat_peft.")]
for name in modules:
    importlib.import_module(name)
print(len(modules))
"""
    ended = python("-c", program)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) == len(SOURCES) - 1  # smat_peft/__init__.py itself is not walked


def test_shapes_are_checked_while_testing() -> None:
    from smat_peft.experts.prototypes import cosine_logits

    with pytest.raises(jaxtyping.TypeCheckError):
        cosine_logits(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with a wheel in `dist`; what a build leaves behind, the next one would pack."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy)
    for name in ("smat_peft", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    ended = python("-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "dist", copy)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return copy


def names_in_wheel(built: Path) -> set[str]:
    (wheel,) = (built / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    assert {name.split("/")[0] for name in names_in_wheel(built)} == {
        "smat_peft",
        f"smat_peft-{__version__}.dist-info",
    }


def test_the_wheel_holds_every_file_of_the_package(built: Path) -> None:
    files = {path.relative_to(built).as_posix() for path in (built / "smat_peft").rglob("*") if path.is_file()}
    assert "smat_peft/py.typed" in files
    assert {name for name in names_in_wheel(built) if name.startswith("smat_peft/")} == files
