"""Domains by their specification: `builtin:greek`, `folder:flowers`, `hub:uoft-cs/cifar100@test`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl

from smat_peft.episodes.domain import EVERY_AUGMENTATION, Augmentation, Domain
from smat_peft.episodes.folders import read_image_folder, sub_folders
from smat_peft.episodes.h5 import read_h5
from smat_peft.episodes.stored import OnBadImage, StoredSettings
from smat_peft.episodes.tables import read_disk, read_hub, read_parquet
from smat_peft.errors import ConfigurationError, DataError

ALL_SUB_FOLDERS = "/*"


def _itself(location: str) -> list[str]:
    return [location]


@dataclass(frozen=True)
class Source:
    """A kind of place that domains come from.

    Attributes:
        load: Makes one domain of a location, the options of its specification, and how to treat stored images.
        options: Names of the options it takes.
        example: A specification, for messages.
        expand: The locations that one location stands for.
    """

    load: Callable[[str, Mapping[str, str], StoredSettings], Domain]
    options: frozenset[str]
    example: str
    expand: Callable[[str], list[str]] = _itself


def load_domain(spec: str, *, on_bad_image: OnBadImage = "error") -> Domain:
    """Load one domain.

    Args:
        spec: One of

            - `builtin:NAME`: a domain of the built-in suite;
            - `folder:PATH`: a folder of class folders of images;
            - `hub:NAME[:CONFIG][@SPLIT]`: a data set on the Hub with a column of images and one of class labels;
            - `disk:PATH[@SPLIT]`: the same in a folder that `save_to_disk` of `datasets` has written;
            - `parquet:PATTERN`: the same in parquet files;
            - `h5:ROOT/SOURCE`: a source of Meta-Dataset in PMF's form, with its own class splits (METHOD 10).

            Options follow a question mark, `folder:PATH?splits=FILE&augment=crop,colour`. `augment` (all but builtin):
            which training augmentations leave an image in its class, of crop, colour, mirror; or none. `splits`
            (folder, hub, disk, parquet): a JSON file that says which classes are for training, validation and test
            (else a folder's own `splits.json`, else a fixed shuffle). `image` and `label` (hub, disk, parquet): the
            columns, which are otherwise found by their types. `files` (the same): a folder that image files may be
            read from, where rows name files instead of holding images; a data set's own and caches need no mention.
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
    settings = StoredSettings(
        splits_file=Path(options["splits"]).expanduser() if "splits" in options else None,
        augment=_augmentations(options["augment"]) if "augment" in options else EVERY_AUGMENTATION,
        on_bad_image=on_bad_image,
    )
    try:
        return source.load(location, options, settings)
    except OSError as error:
        raise DataError(f"{location} cannot be read: {error.strerror or error}") from error


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


def _expand_builtin(location: str) -> list[str]:
    from smat_peft.episodes.builtin import ROLES

    return list(ROLES.get(location, [location]))


def _load_builtin(location: str, options: Mapping[str, str], settings: StoredSettings) -> Domain:
    from smat_peft.episodes.builtin import load_builtin  # draws with Matplotlib, slow to import

    return replace(load_builtin(location), origin=f"builtin:{location}")


def _load_folder(location: str, options: Mapping[str, str], settings: StoredSettings) -> Domain:
    return read_image_folder(Path(location).expanduser(), settings)


def _load_h5(location: str, options: Mapping[str, str], settings: StoredSettings) -> Domain:
    return read_h5(Path(location).expanduser(), settings)


TABLE_OPTIONS = frozenset({"image", "label", "files", "splits", "augment"})

SOURCES = {
    "builtin": Source(_load_builtin, frozenset(), "builtin:greek", _expand_builtin),
    "folder": Source(_load_folder, frozenset({"splits", "augment"}), "folder:PATH", _expand_folder),
    "hub": Source(read_hub, TABLE_OPTIONS, "hub:uoft-cs/cifar100:cifar100@test?label=fine_label"),
    "disk": Source(read_disk, TABLE_OPTIONS, "disk:PATH"),
    "parquet": Source(read_parquet, TABLE_OPTIONS, "parquet:data/*.parquet"),
    "h5": Source(_load_h5, frozenset({"augment"}), "h5:ROOT/aircraft"),
}
