"""An evaluation in the Hub's own format, `.eval_results/*.yaml`: it shows them on the model's page and on leaderboards.

An entry names a data set of the Hub, so only domains that have one get a file: those loaded from the Hub, and those of
the built-in suite, which go under one name that no other data can have. A folder of one's own has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from smat_peft.files import write_text

FOLDER = ".eval_results"
BUILTIN_SUITE = "smat-peft/builtin"  # its tasks are the domains


def write_eval_results(
    output_dir: str | Path, accuracies: Mapping[str, Mapping[str, Any]], origins: Mapping[str, str]
) -> list[Path]:
    """Write a file for each domain that the Hub has a name for.

    Args:
        output_dir: The adapter's folder; the files go into its `.eval_results`.
        accuracies: By domain, `mean` and `half_width` of its 95 % interval as shares (None where there is no interval),
            and `count`, the number of episodes.
        origins: By domain, the specification that it was loaded by.

    Returns:
        The paths of the files.
    """
    written = []
    for domain, accuracy in accuracies.items():
        named = hub_data_set(origins.get(domain, ""))
        if named is None:
            continue
        notes = f"mean query accuracy of {accuracy['count']} few-shot episodes"
        if accuracy["half_width"] is not None:
            notes += f", ± {accuracy['half_width']:.4f} (95 % interval)"
        entry = EvalResultEntry(*named, round(accuracy["mean"], 4), notes=notes)
        path = Path(output_dir) / FOLDER / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', domain)}.yaml"
        write_text(path, yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True))
        written.append(path)
    return written


def hub_data_set(origin: str) -> tuple[str, str] | None:
    """Names on the Hub of a domain's data set and of the task in it, by the domain's specification; None of others."""
    kind, _, location = origin.partition(":")
    if kind == "builtin":
        return BUILTIN_SUITE, location
    if kind != "hub":
        return None
    name, _, config = location.partition("@")[0].partition(":")
    return name, config or "default"
