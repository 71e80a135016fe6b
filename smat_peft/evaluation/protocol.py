"""Measure predictors on few-shot episodes of several domains, all of them on the very same episodes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn
from tqdm.auto import tqdm

from smat_peft.episodes.cache import ImageCache
from smat_peft.episodes.domain import Domain, Split
from smat_peft.episodes.draws import MAX_QUERIES
from smat_peft.episodes.episode import Episode
from smat_peft.episodes.images import ImageTransform
from smat_peft.episodes.sampling import EpisodeSampler
from smat_peft.errors import ConfigurationError, DataError
from smat_peft.evaluation.predictors import Prediction, Predictor, default_predictors
from smat_peft.evaluation.records import ROLE_TITLES, Evaluation, Record, Role


class EvaluationDomain(NamedTuple):
    """A domain, what it is for, and whose classes to use: in-distribution the held-out ones, else usually `"all"`."""

    role: Role
    domain: Domain
    split: Split


def evaluate(
    model: nn.Module | Mapping[str, Predictor],
    domains: Sequence[EvaluationDomain | tuple[Role, Domain, Split]],
    *,
    transform: ImageTransform,
    episodes: int = 100,
    ways: int | None = None,
    shots: int | None = None,
    queries: int = MAX_QUERIES,
    seed: int = 0,
    cache: ImageCache | None = None,
    progress: bool = True,
) -> Evaluation:
    """Accuracy without fine-tuning on episodes of each domain (METHOD 11a).

    Args:
        model: A model, which is measured as [`default_predictors`] says and comes back as it was; or predictors by
            name, the first of which is the baseline of the differences in a report.
        domains: Role, domain and split of each domain; names must differ.
        transform: The model's image transform.
        episodes: Number of episodes of each domain.
        ways: Number of classes; variable (METHOD 10) if not given.
        shots: Support images of each class; variable (METHOD 10) if not given.
        queries: Most query images of each class.
        seed: Which episodes. A domain's depend on it and on the domain's name, not on the other domains.
        cache: Keeps prepared images from one episode to the next; none are kept if not given.
        progress: Whether to show a bar.

    Raises:
        DataError: Two domains of the same name, or one without enough classes in its split.
        ConfigurationError: No predictor, domain or episode, an unknown role, or logits of a wrong shape.
    """
    predictors = default_predictors(model) if isinstance(model, nn.Module) else model
    entries = [EvaluationDomain(*entry) for entry in domains]
    if not predictors or not entries or episodes < 1:
        raise ConfigurationError(
            f"nothing to evaluate: {len(predictors)} predictors on {episodes} episodes of {len(entries)} domains"
        )
    _check(entries)
    samplers = [
        EpisodeSampler(
            [domain],
            split,
            ways,
            shots,
            queries,
            domain_seed(seed, domain.name),
            transform=transform,
            augment=False,
            cache=cache,
        )
        for _, domain, split in entries
    ]
    records: list[Record] = []
    with tqdm(total=episodes * len(entries), desc="evaluating", unit="episode", disable=not progress) as bar:
        for (role, domain, _), sampler in zip(entries, samplers, strict=True):
            bar.set_postfix_str(domain.name)
            for index in range(episodes):
                records += _measure(predictors, sampler[index], role)
                bar.update()
    return Evaluation(records)


def domain_seed(seed: int, name: str) -> int:
    """Seed of a domain's episodes: other ways and shots for each domain, so that their means are independent."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "little")


def _check(entries: Sequence[EvaluationDomain]) -> None:
    names = [entry.domain.name for entry in entries]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"domains must have different names; more than one is called {', '.join(repeated)}")
    for entry in entries:
        if entry.role not in ROLE_TITLES:
            known = ", ".join(ROLE_TITLES)
            raise ConfigurationError(f"domain {entry.domain.name!r}: unknown role {entry.role!r}; roles are {known}")


def _measure(predictors: Mapping[str, Predictor], episode: Episode, role: Role) -> list[Record]:
    records = []
    for name, predictor in predictors.items():
        answer = predictor(episode)
        prediction = answer if isinstance(answer, Prediction) else Prediction(answer)
        expected = (len(episode.query), episode.ways)
        if prediction.logits.shape != expected:
            raise ConfigurationError(
                f"predictor {name!r} must give logits of shape {expected}, got {tuple(prediction.logits.shape)}"
            )
        correct = prediction.logits.argmax(-1).cpu() == episode.query_labels
        mixed = prediction.expert_weights
        records.append(
            Record(
                predictor=name,
                domain=episode.domain,
                role=role,
                index=episode.index,
                ways=episode.ways,
                support=len(episode.support),
                queries=len(episode.query),
                accuracy=correct.double().mean().item(),
                expert_weights=None if mixed is None else tuple(mixed.tolist()),
            )
        )
    return records
