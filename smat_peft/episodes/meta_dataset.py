"""What a `dataset_spec.json` of Meta-Dataset says: classes, their splits, and how they belong together (METHOD 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from smat_peft.episodes.domain import MIN_CLASSES, Hierarchy
from smat_peft.episodes.hierarchies import Bilevel, Ontology
from smat_peft.episodes.stored import read_json
from smat_peft.errors import DataError

SPECIFICATION = "dataset_spec.json"
SPLITS = {"TRAIN": "train", "VALID": "validation", "TEST": "test"}  # theirs and ours, in the order of class ids
FILE_PATTERNS = ("{}.tfrecords", "{}.h5")  # one file a class, named by its id; the first is what PMF's files come with
MAX_SPAN = 392  # most classes under a node that may be drawn: Meta-Dataset's MAX_SPANNING_LEAVES_ELIGIBLE


@dataclass(frozen=True)
class Specification:
    """A source of Meta-Dataset. Class ids run from 0: first the training classes, then validation, then test.

    Attributes:
        names: Name of each class by its id.
        sizes: Number of images of each class by its id.
        splits: Ids of the classes of each split.
        hierarchies: By split, how its classes belong together, where they do.
    """

    names: Sequence[str]
    sizes: Sequence[int]
    splits: Mapping[str, range]
    hierarchies: Mapping[str, Hierarchy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = sum(map(len, self.splits.values()))
        if not len(self.names) == len(self.sizes) == total:
            raise DataError(f"it has {total} classes, {len(self.names)} names, {len(self.sizes)} numbers of images")
        if not all(isinstance(name, str) for name in self.names) or not all(isinstance(n, int) for n in self.sizes):
            raise DataError("names of classes must be strings, and numbers of images whole numbers")
        if len(set(self.names)) < total:
            raise DataError("it gives several classes one name")


def read_specification(folder: Path) -> Specification:
    """The `dataset_spec.json` of a folder.

    Raises:
        DataError: There is none, only the older pickle, or one that does not fit together.
    """
    path = folder / SPECIFICATION
    if not path.is_file():
        raise DataError(_how_to_get(folder))
    content = read_json(path, "specification")
    try:
        if content["file_pattern"] not in FILE_PATTERNS:
            raise DataError(f"file_pattern must be {FILE_PATTERNS[0]!r}, got {content['file_pattern']!r}")
        if "split_subgraphs" in content:
            return _hierarchical(content)
        return _bilevel(content) if "superclasses_per_split" in content else _plain(content)
    except KeyError as error:
        raise DataError(f"{path} is not a specification of Meta-Dataset: it has no entry {error}") from error
    except (AttributeError, TypeError, OverflowError, DataError) as error:
        raise DataError(f"{path} is not a specification of Meta-Dataset: {error}") from error


def _how_to_get(folder: Path) -> str:
    pickled = (folder / SPECIFICATION).with_suffix(".pkl")
    if not pickled.exists():
        return f"{folder} holds no {SPECIFICATION}; give the folder of one source of Meta-Dataset, as PMF stores them"
    return (
        f"{pickled} is a pickle, which could run code, and is not read; put {SPECIFICATION} beside it: Meta-Dataset's "
        f"repository has it in meta_dataset/dataset_conversion/dataset_specs/{folder.name}_{SPECIFICATION}, and its "
        "load_dataset_spec(folder, convert_from_pkl=True) makes it from a pickle that you trust"
    )


def _plain(content: Mapping[str, Any]) -> Specification:
    counts = [content["classes_per_split"][split] for split in SPLITS]
    splits = dict(zip(SPLITS.values(), _consecutive(counts), strict=True))
    return Specification(_by_id(content["class_names"]), _by_id(content["images_per_class"]), splits)


def _bilevel(content: Mapping[str, Any]) -> Specification:
    groups = _consecutive(_by_id(content["classes_per_superclass"]))
    split_groups = _consecutive([content["superclasses_per_split"][split] for split in SPLITS])
    splits = dict(
        zip(SPLITS.values(), _consecutive([sum(len(groups[g]) for g in part) for part in split_groups]), strict=True)
    )
    hierarchies = {}
    for (split, ids), part in zip(splits.items(), split_groups, strict=True):
        within = [range(group.start - ids.start, group.stop - ids.start) for group in (groups[g] for g in part)]
        within = [group for group in within if len(group) >= MIN_CLASSES]
        if within:
            hierarchies[split] = Bilevel(within)
    return Specification(_by_id(content["class_names"]), _by_id(content["images_per_class"]), splits, hierarchies)


def _hierarchical(content: Mapping[str, Any]) -> Specification:
    names = _by_id(content["class_names"])
    graphs = [{node["wn_id"]: node["children_ids"] for node in content["split_subgraphs"][split]} for split in SPLITS]
    leaves = [sum(not children for children in graph.values()) for graph in graphs]
    splits = dict(zip(SPLITS.values(), _consecutive(leaves), strict=True))
    sizes: list[int] = []
    hierarchies = {}
    for (theirs, ours), graph in zip(SPLITS.items(), graphs, strict=True):
        own = [names[number] for number in splits[ours]]
        sizes += [content["images_per_class"][theirs][name] for name in own]
        spans = _spans(graph, {name: number for number, name in enumerate(own)})
        if spans:
            hierarchies[ours] = Ontology(spans)
    return Specification(names, sizes, splits, hierarchies)


def _spans(graph: Mapping[str, Sequence[str]], numbers: Mapping[str, int]) -> list[list[int]]:
    """For each inner node that may be drawn the numbers of the classes under it, sorted by their sums (METHOD 10)."""
    spans = [sorted(numbers[leaf] for leaf in _leaves_under(node, graph)) for node in graph if graph[node]]
    return sorted((span for span in spans if MIN_CLASSES <= len(span) <= MAX_SPAN), key=lambda span: (sum(span), span))


def _leaves_under(node: str, graph: Mapping[str, Sequence[str]]) -> set[str]:
    seen, left = set(), [node]
    while left:
        node = left.pop()
        if node not in seen:
            seen.add(node)
            left += graph[node]
    return {node for node in seen if not graph[node]}


def _by_id(table: Mapping[str, Any]) -> list[Any]:
    return [table[str(number)] for number in range(len(table))]


def _consecutive(counts: Sequence[int]) -> list[range]:
    """Ranges of so many ids each, one after another."""
    if any(count < 0 for count in counts):
        raise DataError(f"it counts fewer than no classes: {list(counts)}")
    return [range(start, stop) for start, stop in pairwise(accumulate(counts, initial=0))]
