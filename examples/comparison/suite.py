"""The built-in suite, its backbone and the settings as the first method found them: later ones must find the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from comparison.runs import merged
from comparison.training import RECIPES
from smat_peft.assets import demo_backbone
from smat_peft.episodes import load_domain
from smat_peft.episodes.builtin import builtin_names
from smat_peft.errors import DataError
from smat_peft.files import sha256_of

FROZEN = "suite.json"


def freeze(results: Path) -> None:
    """Write down what all methods have in common, once.

    Raises:
        DataError: It is something else than that of the records in `results`.
    """
    found, path = fingerprint(), results / FROZEN
    if not path.exists():
        results.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1))
    frozen = json.loads(path.read_text())
    differing = sorted(name for name in found.keys() | frozen.keys() if found.get(name) != frozen.get(name))
    if differing:
        raise DataError(
            f"{', '.join(differing)} differ from what the records in {results} were made with (images are "
            "drawn, and other versions of the drawing libraries draw other pixels); choose another --results_dir"
        )


def fingerprint() -> dict[str, str]:
    """SHA-256 of the settings, of the backbone's weights, and of the first image of each class of each domain."""
    settings = json.dumps(merged(RECIPES), sort_keys=True).encode()
    found = {"settings": hashlib.sha256(settings).hexdigest()}
    found["backbone"] = sha256_of(demo_backbone() / "model.safetensors")
    for name in builtin_names():
        digest = hashlib.sha256()
        for class_name, images in load_domain(f"builtin:{name}").class_images.items():
            digest.update(class_name.encode() + images[0].tobytes())
        found[name] = digest.hexdigest()
    return found
