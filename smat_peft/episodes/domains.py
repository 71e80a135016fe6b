"""Domains by their specification: `builtin:greek`, `folder:flowers`, `folder:domains/*`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from smat_peft.episodes.domain import EVERY_AUGMENTATION, Augmentation, Domain
from smat_peft.episodes.folders import OnBadImage, read_image_folder, sub_folders
from smat_peft.errors import ConfigurationError, DataError

ALL_SUB_FOLDERS = "/*"


@dataclass(frozen=True)
class Source:
    """A kind of place that domains come from.

    Attributes:
        load: Makes one domain of a location, the options of its specification, and what to do with bad images.
        expand: The locations that one location stands for.
        options: Names of the options it takes.
        example: A specification, for messages.
    """

    load: Callable[[str, Mapping[str, str], OnBadImage], Domain]
    expand: Callable[[str], list[str]]
    options: frozenset[str]
    example: str


def load_domain(spec: str, *, on_bad_image: OnBadImage = "error") -> Domain:
    """Load one domain.

    Args:
        spec: `builtin:NAME` for a domain of the built-in suite, or `folder:PATH` for a folder of class folders of
            images. A folder takes options, `folder:PATH?splits=FILE&augment=crop,colour`: a JSON file that says which
            classes are for training, validation and test (else the folder's own `splits.json`, else a fixed shuffle),
            and which training augmentations leave an image in its class (of crop, colour, mirror; or none).
        on_bad_image: `"error"`, or `"skip"` to leave out images that cannot be read, with a warning that lists them.

    Raises:
        DataError: The specification is unknown, stands for several domains, or its images cannot be used.
    """
    source, location, options = _parse(spec)
    if source.expand(location) != [location]:
        raise DataError(f"{spec!r} stands for several domains; use load_domains, or name one ({source.example})")
    return _load(source, location, options, on_bad_image)


def load_domains(specs: Sequence[str], *, on_bad_image: OnBadImage = "error") -> list[Domain]:
    """Load domains in the order of their specifications.

    Args:
        specs: As for [`load_domain`], and besides `folder:PATH/*` for each folder in PATH as a domain, and
            `builtin:id`, `builtin:dev_ood`, `builtin:test_ood` for all built-in domains of a role.
        on_bad_image: As for [`load_domain`].

    Raises:
        DataError: As for [`load_domain`], or two domains have one name.
    """
    domains: dict[str, Domain] = {}
    origins: dict[str, str] = {}
    for spec in specs:
        source, location, options = _parse(spec)
        for one in source.expand(location):
            domain = _load(source, one, options, on_bad_image)
            if domain.name in domains:
                raise DataError(
                    f"two domains are named {domain.name!r}, from {origins[domain.name]!r} and {spec!r}; "
                    "rename one folder, or name the domain once"
                )
            domains[domain.name] = domain
            origins[domain.name] = spec
    return list(domains.values())


def _parse(spec: str) -> tuple[Source, str, dict[str, str]]:
    scheme, colon, rest = spec.partition(":")
    source = SOURCES.get(scheme)
    if source is None or not colon:
        examples = ", ".join(known.example for known in SOURCES.values())
        raise DataError(f"{spec!r} is no specification of a domain; write for example {examples}")
    location, _, query = rest.partition("?")
    if not location:
        raise DataError(f"{spec!r} names nothing after the colon; write for example {source.example}")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in options.keys() - source.options:
        takes = ", ".join(sorted(source.options)) or "none"
        raise DataError(f"{spec!r}: unknown option {name!r}; options of {scheme}: {takes}")
    return source, location, options


def _load(source: Source, location: str, options: Mapping[str, str], on_bad_image: OnBadImage) -> Domain:
    if on_bad_image not in ("error", "skip"):
        raise ConfigurationError(f"on_bad_image must be 'error' or 'skip', got {on_bad_image!r}")
    return source.load(location, options, on_bad_image)


def _load_folder(location: str, options: Mapping[str, str], on_bad_image: OnBadImage) -> Domain:
    splits = Path(options["splits"]).expanduser() if "splits" in options else None
    augment = _augmentations(options["augment"]) if "augment" in options else EVERY_AUGMENTATION
    return read_image_folder(Path(location).expanduser(), splits, augment, on_bad_image)


def _augmentations(listed: str) -> frozenset[Augmentation]:
    if listed == "none":
        return frozenset()
    names = set(listed.split(","))
    if not names <= EVERY_AUGMENTATION:
        raise DataError(f"augment={listed} names an unknown augmentation; known are crop, colour, mirror, or none")
    return frozenset(name for name in EVERY_AUGMENTATION if name in names)


def _expand_folder(location: str) -> list[str]:
    if not location.endswith(ALL_SUB_FOLDERS):
        return [location]
    folder = location.removesuffix(ALL_SUB_FOLDERS) or "/"
    found = [str(path) for path in sub_folders(Path(folder).expanduser())]
    if not found:
        raise DataError(f"{folder} holds no folders; folder:{folder}/* takes each folder in it as a domain")
    return found


def _load_builtin(location: str, options: Mapping[str, str], on_bad_image: OnBadImage) -> Domain:
    from smat_peft.episodes.builtin import builtin_names, load_builtin  # draws with Matplotlib, slow to import

    if location not in builtin_names():
        raise DataError(f"there is no built-in domain {location!r}; there are {', '.join(builtin_names())}")
    return load_builtin(location)


def _expand_builtin(location: str) -> list[str]:
    from smat_peft.episodes.builtin import ROLES

    return list(ROLES.get(location, [location]))


SOURCES = {
    "builtin": Source(_load_builtin, _expand_builtin, frozenset(), "builtin:greek"),
    "folder": Source(_load_folder, _expand_folder, frozenset({"splits", "augment"}), "folder:PATH"),
}
