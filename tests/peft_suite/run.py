"""Run PEFT's own tests against SMATConfig: what PEFT expects of a method, in PEFT's words.

    make peft-suite
    python tests/peft_suite/run.py custom -- -x -k merge     # one part, with arguments for pytest

The tests are in PEFT's source distribution, not in its wheel, so they are fetched once for the installed version and
kept in build/. Models of the Hub are replaced by tiny ones of the same kind (stand_ins.py); what is not
expected to pass is listed with its reason (exceptions.py). Exit status 1 if anything else fails, or if an exception no
longer is one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
PARTS = {
    "custom": ["test_custom_models", "test_config"],
    "language": [
        "test_decoder_models",
        "test_feature_extraction_models",
        "test_seq_classifier",
        "test_encoder_decoder_models",
    ],
    "vision": ["test_vision_models"],
    "low_level": ["test_low_level_api", "test_hub_features", "test_tuners_utils", "test_other", "test_helpers"],
}


def fetch(folder: Path) -> None:
    """Put PEFT's tests, and the one package they need beside ours, into `folder`."""
    version = importlib.metadata.version("peft")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        download = ["download", "--no-deps", "--no-binary", "peft", "--dest", scratch, f"peft=={version}"]
        subprocess.run([*pip, *download], check=True)
        with tarfile.open(next(Path(scratch).glob("peft-*.tar.gz"))) as archive:
            archive.extractall(scratch, filter="data")
        tests = Path(scratch) / f"peft-{version}" / "tests"
        (tests / "__init__.py").touch()
        subprocess.run([*pip, "install", "--target", str(folder / "packages"), "parameterized"], check=True)
        shutil.move(tests, folder / "peft_tests")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -q --tb=short -W ignore -p no:cacheprovider\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--folder", type=Path, help="where the tests are kept; build/ by default")
    arguments, for_pytest = parser.parse_known_args()
    unknown = set(arguments.parts) - PARTS.keys()
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")

    version = importlib.metadata.version("peft")
    folder = (arguments.folder or REPOSITORY / "build" / f"peft_suite_{version}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "peft_tests").exists():
        fetch(folder)
    parts = arguments.parts or list(PARTS)
    modules = [module for part in parts for module in PARTS[part]]
    files = [folder / "peft_tests" / f"{module}.py" for module in modules]
    if "vision" in parts:
        files.append(HERE / "vision_transformers.py")
    paths = [HERE, folder, REPOSITORY, folder / "packages"]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]),
        "SMAT_PEFT_SUITE": str(folder),
        "SMAT_PEFT_SUITE_MODULES": ",".join(modules),
    }
    command = [sys.executable, "-m", "pytest", "-c", folder / "pytest.ini", "--rootdir", folder, "-p", "plugin"]
    return subprocess.run([*command, *files, *for_pytest], env=environment, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
