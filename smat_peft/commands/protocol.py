"""The domains that a command's arguments name, each with its role and the shape of its test episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl

from smat_peft.commands.arguments import DATA_ROOT, DataArguments
from smat_peft.commands.checks import check_images
from smat_peft.episodes.domain import MIN_CLASSES, Domain
from smat_peft.episodes.domains import load_domains
from smat_peft.episodes.draws import MAX_QUERIES
from smat_peft.episodes.images import ImageTransform
from smat_peft.episodes.overlap import shared_content
from smat_peft.episodes.sampling import SPLIT_NUMBERS, EpisodeSampler, can_serve
from smat_peft.errors import DataError, SmatError
from smat_peft.evaluation.protocol import EvaluationDomain
from smat_peft.evaluation.records import Role

LEAST = {"ways": 2, "shots": 1, "queries": 1}
OPTIONS = ("name", "classes", *LEAST)  # of a domain's test episodes; all others belong to its source
TRAINED_ON = ("train", "all")  # splits that an ID domain must not be tested on


def load_protocol(data: DataArguments) -> list[EvaluationDomain]:
    """All domains with their roles and the shape of their test episodes; loads no model.

    A training domain with too few training classes serves as an OOD domain.

    Raises:
        DataError: Domains cannot be found, read, or drawn test episodes from; it says all that is wrong, not the first
            thing only. Or two domains have one name.
    """
    named: tuple[tuple[Role, list[str]], ...] = (
        ("id", data.train_domains),
        ("dev_ood", data.dev_ood_domains),
        ("test_ood", data.ood_domains),
    )
    entries: list[EvaluationDomain] = []
    loaded: dict[str, list[Domain]] = {}
    origins: dict[str, str] = {}
    problems: dict[str, str] = {}  # by what is wrong: one missing package is one problem, however many domains need it
    for role, specs in named:
        for spec in specs:
            try:
                for entry in _entries(role, spec, data, loaded):
                    _refuse_same_name(entry.domain.name, spec, origins)
                    entries.append(entry)
            except SmatError as error:
                problems.setdefault(str(error), spec)
    if problems:
        raise DataError(_listed(problems, data.data_root))
    return entries


def shared_by(entries: Sequence[EvaluationDomain]) -> list[str]:
    """What domains that are trained on share with those that should be new: see [`shared_content`]."""
    training = [entry.domain for entry in entries if entry.role == "id"]
    return shared_content(training, [entry.domain for entry in entries if entry.role != "id"])


def check_training(entries: Sequence[EvaluationDomain]) -> None:
    """Raise a DataError where no domain can be trained on."""
    if all(entry.role != "id" for entry in entries):
        found = ", ".join(f"{entry.domain.name} {len(entry.domain.classes('train'))}" for entry in entries) or "none"
        raise DataError(
            f"--train_domains must name a domain with at least {MIN_CLASSES} training classes; domains and their "
            f"training classes: {found}"
        )


def with_enough_classes(entries: Sequence[EvaluationDomain]) -> list[EvaluationDomain]:
    """The domains with enough classes to test on."""
    return [entry for entry in entries if can_serve(entry.domain, entry.split, entry.ways)]


@dataclass(frozen=True)
class _TestOptions:
    """What a specification says of its test episodes; None where it says nothing."""

    name: str | None
    classes: str | None
    ways: int | None
    shots: int | None
    queries: int | None


def _entries(role: Role, spec: str, data: DataArguments, loaded: dict[str, list[Domain]]) -> list[EvaluationDomain]:
    source, options = _without_test_options(spec)
    if source not in loaded:  # once, also where it is tested in several ways
        place = source.replace(DATA_ROOT, data.data_root)
        domains = load_domains([place], on_bad_image=data.on_bad_image)  # type: ignore[arg-type]
        if data.on_bad_image == "error":
            check_images(domains)
        loaded[source] = domains
    domains = loaded[source]
    if options.name is not None:
        if len(domains) > 1:
            raise DataError(f"{spec!r} stands for {len(domains)} domains, which cannot all be named {options.name!r}")
        domains = [replace(domain, name=options.name) for domain in domains]
    entries = [_entry(role, domain, options, data) for domain in domains]
    if data.evaluation_episodes:
        _check_test_episodes(with_enough_classes(entries) if options.ways is None else entries)
    return entries


def _without_test_options(spec: str) -> tuple[str, _TestOptions]:
    """The specification as [`load_domains`] takes it, and what it says of test episodes."""
    location, _, query = spec.partition("?")
    given = {name: value for name, value in parse_qsl(query, keep_blank_values=True) if name in OPTIONS}
    for name, least in LEAST.items():
        if name in given and not (given[name].isdecimal() and int(given[name]) >= least):
            raise DataError(f"{spec!r}: {name} must be a whole number, at least {least}, got {given[name]!r}")
    if given.get("name") == "":
        raise DataError(f"{spec!r}: name must not be empty")
    if given.get("classes", "all") not in SPLIT_NUMBERS:
        raise DataError(f"{spec!r}: classes must be one of {', '.join(SPLIT_NUMBERS)}, got {given['classes']!r}")
    numbers = {name: int(given[name]) if name in given else None for name in LEAST}
    rest = "&".join(pair for pair in query.split("&") if pair.partition("=")[0] not in OPTIONS)
    options = _TestOptions(given.get("name"), given.get("classes"), **numbers)
    return f"{location}?{rest}" if rest else location, options


def _entry(role: Role, domain: Domain, options: _TestOptions, data: DataArguments) -> EvaluationDomain:
    if role == "id" and not can_serve(domain, "train"):
        role = "test_ood"
    split = options.classes or ("test" if role == "id" else "all")
    if role == "id" and split in TRAINED_ON:
        raise DataError(f"domain {domain.name!r} is trained on, so it cannot be tested on classes={split}; use test")
    return EvaluationDomain(
        role,
        domain,
        split,  # type: ignore[arg-type]
        options.ways or data.evaluation_ways,
        options.shots or data.evaluation_shots,
        options.queries or data.queries,
    )


def _check_test_episodes(entries: Sequence[EvaluationDomain]) -> None:
    any_transform = ImageTransform((1, 1))  # no episode is drawn
    for entry in entries:
        queries = entry.queries or MAX_QUERIES
        EpisodeSampler([entry.domain], entry.split, entry.ways, entry.shots, queries, transform=any_transform)


def _refuse_same_name(name: str, spec: str, origins: dict[str, str]) -> None:
    if name in origins:
        raise DataError(
            f"two domains are named {name!r}, from {origins[name]!r} and {spec!r}; "
            "name a domain once, or give one of them another name with ?name=NAME"
        )
    origins[name] = spec


def _listed(problems: dict[str, str], data_root: str) -> str:
    lines = list(problems)
    if len(lines) > 1:
        lines = ["these domains cannot be used:", *(f"- {line}" for line in lines)]
    if any(DATA_ROOT in spec for spec in problems.values()):
        lines.append(f"{DATA_ROOT} is {data_root!r} (--data_root); the first lines of a recipe say what belongs there")
    return "\n".join(lines)
