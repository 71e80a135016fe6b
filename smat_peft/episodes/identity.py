"""What episodes are, as plain data: a run or an evaluation that was cut goes on with the same ones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from smat_peft.episodes.domain import Domain, Split
from smat_peft.episodes.episode import Episode
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.episodes.folders import ImageFiles
from smat_peft.episodes.sampling import EpisodeSampler

DESCRIBED_EPISODES = 32  # enough that other ways, shots, seeds or weights of domains show


def describe_episodes(episodes: object) -> dict[str, Any]:
    """What is known of episodes without reading an image; of a list of them the labels, of other objects nothing."""
    if isinstance(episodes, FixedEpisodes):
        described = [describe_episodes(sampler) for sampler in episodes.samplers]
        return {"episodes of each domain": episodes.episodes_each, "samplers": described}
    if isinstance(episodes, EpisodeSampler):
        drawn = [dataclasses.asdict(episodes.describe(index)) for index in range(DESCRIBED_EPISODES)]
        return {
            "domains": {
                domain.name: {
                    "augmentation": sorted(domain.augment) if episodes.augment else [],
                    **describe_images(domain, episodes.split),
                }
                for domain in episodes.domains
            },
            "split": episodes.split,
            "transform": str(episodes.transform),
            "ways, shots, queries and draws": digest(drawn),
        }
    if isinstance(episodes, list | tuple):
        return {"episodes": digest([_describe_episode(each) for each in episodes])}
    return {}


def digest(value: object) -> str:
    """SHA-256 of plain data; of what is not, as it prints."""
    return hashlib.sha256(json.dumps(value, default=plain, sort_keys=True).encode()).hexdigest()


def plain(value: object) -> object:
    """A value as JSON can hold it."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def _describe_episode(episode: Episode) -> dict[str, Any]:
    return {
        "domain": episode.domain,
        "index": episode.index,
        "support": episode.support_labels.tolist(),
        "query": episode.query_labels.tolist(),
    }


def describe_images(domain: Domain, split: Split) -> dict[str, Any]:
    """What is known of a split's images without reading one: how many each class has, and names and sizes of files."""
    images = {name: domain.images(split, name) for name in domain.classes(split)}
    files = {name: [*map(_describe_file, of.places)] for name, of in images.items() if isinstance(of, ImageFiles)}
    return {
        "classes": len(images),
        "images": sum(len(of_class) for of_class in images.values()),
        "names of classes": digest(list(images)),
        "images of each class": digest({name: len(of_class) for name, of_class in images.items()}),
        "names of files": digest(files),
    }


def _describe_file(path: Path) -> tuple[str, int]:
    return path.name, path.stat().st_size if path.is_file() else 0  # one that is gone is reported where it is drawn
