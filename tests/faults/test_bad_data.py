"""Images, data sets, recipes and lists of episodes that are damaged or strange: each is read, or one clear error."""

from __future__ import annotations

import io
import json
import os
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from smat_peft.commands.meta_tune import main
from smat_peft.episodes.domain import Domain
from smat_peft.episodes.domains import load_domain, load_domains
from smat_peft.episodes.images import ImageTransform
from smat_peft.episodes.sampling import EpisodeSampler
from smat_peft.errors import DataError
from smat_peft.evaluation.manifest import read_manifest
from tests.class_folders import write_classes

Write = Callable[[Path], object]
COLOUR = (200, 30, 30)


def picture(mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (12, 8), COLOUR).convert(mode)


def encoded(kind: str, mode: str = "RGB", **settings: Any) -> bytes:
    file = io.BytesIO()
    picture(mode).save(file, kind, **settings)
    return file.getvalue()


def folder_of(path: Path, images: int = 3) -> Path:
    return write_classes(path, [f"class{number}" for number in range(6)], images, lambda *_: picture())


# ----- images -----

READ = {
    "CMYK": ("photo.jpg", encoded("JPEG", "CMYK")),
    "a palette": ("photo.png", encoded("PNG", "P")),
    "a palette with transparency": ("photo.gif", encoded("GIF", "P", transparency=0)),
    "transparency": ("photo.png", encoded("PNG", "RGBA")),
    "grey with transparency": ("photo.png", encoded("PNG", "LA")),
    "two colours": ("photo.png", encoded("PNG", "1")),
    "another format than its name's": ("photo.jpg", encoded("PNG")),
    "a name in capitals": ("PHOTO.JPG", encoded("JPEG")),
    "metadata that is none": ("photo.jpg", encoded("JPEG", exif=b"Exif\0\0nonsense")),
    "a colour profile that is none": ("photo.png", encoded("PNG", icc_profile=b"nonsense")),
    "something after its end": ("photo.png", encoded("PNG") + b"something"),
}
REFUSED = {
    "no bytes": ("photo.png", b"", "UnidentifiedImageError"),
    "text": ("photo.jpg", b"not an image", "UnidentifiedImageError"),
    "cut in the header": ("photo.png", encoded("PNG")[:20], "Error"),
    "a JPEG cut in the middle": ("photo.jpg", encoded("JPEG")[:-60], "OSError"),
    "a PNG cut in the middle": ("photo.png", encoded("PNG")[:-30], "Error"),
    "a PNG with a flipped bit": ("photo.png", encoded("PNG").replace(b"IDAT", b"IDAU"), "Error"),
    "a format that is not asked for": ("photo.png", encoded("PCX"), "UnidentifiedImageError"),
    "a program's own format": ("photo.png", encoded("EPS"), "UnidentifiedImageError"),
    "32 bits": ("photo.tif", encoded("TIFF", "F"), "32-bit values"),
    "a web page": ("photo.jpg", b"<!DOCTYPE html><html>404</html>", "UnidentifiedImageError"),
    "a pointer of Git LFS": ("photo.jpg", b"version https://git-lfs.github.com/spec/v1\n", "UnidentifiedImageError"),
}


@pytest.mark.parametrize("case", READ)
def test_a_strange_image_is_read(tmp_path: Path, case: str) -> None:
    name, data = READ[case]
    folder = folder_of(tmp_path / "domain")
    (folder / "class0" / name).write_bytes(data)
    domain = load_domain(f"folder:{folder}")
    assert len(domain.class_images["class0"]) == 4
    for image in domain.class_images["class0"]:
        assert (image.mode, image.size) == ("RGB", (12, 8))


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_image_is_an_error_that_names_it_or_is_left_out_and_listed(tmp_path: Path, case: str) -> None:
    name, data, reason = REFUSED[case]
    folder = folder_of(tmp_path / "domain")
    path = folder / "class0" / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{path} cannot be read as an image \(.*{reason}"):
        list(load_domain(f"folder:{folder}").class_images["class0"])
    with pytest.warns(UserWarning, match=rf"1 images cannot be read and are left out:\n.*{path}"):
        domain = load_domain(f"folder:{folder}", on_bad_image="skip")
    assert domain.left_out == (str(path),)
    assert len(list(domain.class_images["class0"])) == 3


def test_an_image_that_disappears_is_an_error_when_it_is_drawn(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "domain", images=2)
    domain = load_domain(f"folder:{folder}")
    sampler = EpisodeSampler([domain], "all", ways=6, shots=1, queries=1, transform=ImageTransform((8, 8)))
    sampler[0]
    (folder / "class3" / "1.png").unlink()
    with pytest.raises(DataError, match=r"class3/1\.png cannot be read as an image \(FileNotFoundError"):
        sampler[0]


# ----- folders -----


def link(target: str) -> Write:
    return lambda folder: (folder / "class0" / "link.png").symlink_to(target)


def class_of(*names: str, images: int = 2) -> Write:
    return lambda folder: write_classes(folder, names, images, lambda *_: picture())


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
FOLDERS: dict[str, tuple[Write, str]] = {
    "a class with one image": (class_of("single", images=1), "domain: class 'single' has 1 usable images.*at least 2"),
    "a class without images": (class_of("empty", images=0), "class 'empty' has 0 usable images"),
    "a link to nothing": (link("nothing.png"), "class0/link.png is a link that is broken or leads out of"),
    "a link to itself": (link("link.png"), "class0/link.png is a link that is broken or leads out of"),
    "a link out of it": (link("/etc/hostname"), "class0/link.png is a link that is broken or leads out of"),
    "a link upwards": (link("../../other.png"), "class0/link.png is a link that is broken or leads out of"),
    "a folder in a class": (lambda folder: (folder / "class0" / "more").mkdir(), "class0 holds a folder, 'more'"),
    "one name in two forms": (class_of(COMPOSED, DECOMPOSED), "classes 'caf.*' and 'caf.*' look the same"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_cannot_be_used_says_why(tmp_path: Path, case: str) -> None:
    write, message = FOLDERS[case]
    folder = folder_of(tmp_path / "domain")
    write(folder)
    with pytest.raises(DataError, match=message):
        load_domain(f"folder:{folder}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "domain")
    (folder / "class0").chmod(0)
    with pytest.raises(DataError, match="class0"):
        load_domain(f"folder:{folder}")


def test_classes_that_differ_in_case_alone_are_warned_of(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "domain")
    class_of("Cat", "cat")(folder)
    with pytest.warns(UserWarning, match="classes 'Cat' and 'cat' differ in upper and lower case alone"):
        load_domain(f"folder:{folder}")
    class_of("DOG", "dog")(folder)
    with pytest.warns(UserWarning, match=r"'Cat' and 'cat' differ .* alone \(1 more of the kind\)") as found:
        load_domain(f"folder:{folder}")
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_domain(f"folder:{folder_of(tmp_path / 'usual')}")


# ----- tables -----


def table(images: list[Any], labels: Any = None, kind: Any = None) -> datasets.Dataset:
    columns = {"image": images, "label": labels if labels is not None else [n % 3 for n in range(len(images))]}
    kinds = {"image": kind or datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    if labels is not None:
        kinds["label"] = datasets.Features({"label": datasets.Value("string")})["label"]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def row(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


GOOD = [row(encoded("PNG"))] * 6
TABLES: dict[str, tuple[Callable[[], datasets.Dataset], str]] = {
    "images of numbers": (
        lambda: table([1.0] * 6, kind=datasets.Value("float32")),
        "no column is of type Image.* columns are image",
    ),
    "labels of text": (lambda: table(GOOD, ["x"] * 6), "no column is of type ClassLabel"),
    "an image without bytes": (lambda: table([None, *GOOD]), "row 0 of .* is empty"),
    "an image elsewhere": (lambda: table([row(None, "/nowhere/0.png"), *GOOD]), "row 0 of .* is no file here"),
    "bytes of no image": (lambda: table([row(b"nonsense"), *GOOD]), "row 0 of .* cannot be read as an image"),
    "bytes cut off": (lambda: table([row(encoded("PNG")[:-30]), *GOOD]), "row 0 of .* cannot be read as an image"),
}


def draw_all(spec: str) -> None:
    for images in load_domain(spec).class_images.values():
        list(images)


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_cannot_be_used_says_which_column_or_row(tmp_path: Path, case: str) -> None:
    make, message = TABLES[case]
    pq.write_table(make().data.table, tmp_path / "data.parquet")  # as it is; datasets' own saving looks at images
    with pytest.raises(DataError, match=message):
        draw_all(f"parquet:{tmp_path}/data.parquet")


# ----- specifications and lists of episodes -----

SPECIFICATIONS = {
    "": "is no specification of a domain",
    "flowers": "is no specification of a domain",
    "folder": "is no specification of a domain",
    ":x": "is no specification of a domain",
    "http://example.org/x": "is no specification of a domain",
    "zip:x": "is no specification of a domain.*hub:.*disk:PATH.*parquet:.*h5:",
    "folder:": "names nothing after the colon",
    "folder:\0": "is not a folder",
    f"folder:{'a' * 5000}": "File name too long",
    "folder:x?splits": "is not a folder",
    "folder:nowhere": "nowhere is not a folder",
    "folder:nowhere/*": "nowhere is not a folder",
    "folder:x?split=y": "unknown option 'split'.*augment, splits",
    "folder:x?augment=shake": "unknown augmentation",
    "builtin:../greek": "there is no built-in domain '../greek'.*greek.*digits",
    "builtin:greek?splits=y": "unknown option 'splits'.*none",
    "disk:nowhere": "disk:nowhere: nowhere is not a folder",
    "disk:.": r"disk:\. cannot be loaded",
    "disk:x?split=y": "unknown option 'split'.*augment, files, image, label, splits",
    "parquet:nowhere/*.parquet": r"parquet:nowhere/\*\.parquet: there is no such file",
    "parquet:*": "there is no such file",
    "parquet:.": "there is no such file",
    "parquet:/": "there is no such file",
    "h5:": "names nothing after the colon",
    "h5:/nowhere/aircraft": "is not a folder",
    "hub::": "names no data set",
}


@pytest.mark.parametrize("spec", SPECIFICATIONS, ids=lambda spec: ascii(spec[:30]))
def test_a_specification_that_is_wrong_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=SPECIFICATIONS[spec]):
        load_domain(spec)
    with pytest.raises(DataError, match=SPECIFICATIONS[spec]):
        load_domains([spec])


LINE: dict[str, Any] = {"domain": "d", "split": "all", "index": 0, "classes": ["a"], "support": [[0]], "query": [[1]]}
LISTS = {
    "no JSON": ("{", "cannot be read: JSONDecodeError"),
    "a list": ("[]", "cannot be read: TypeError"),
    "no split": (json.dumps({"domain": "d"}), "cannot be read: KeyError"),
    "an image that is not there": (json.dumps(LINE | {"query": [[9]]}), "d.*9"),
    "an image before the first": (json.dumps(LINE | {"query": [[-1]]}), "d.*-1"),
    "a class that is not there": (json.dumps(LINE | {"classes": ["z"]}), "class 'z'"),
    "a file elsewhere": (json.dumps(LINE | {"query_files": [["../../etc/hostname"]]}), "hostname"),
    "classes that are no list": (json.dumps(LINE | {"classes": 3}), "cannot be read: TypeError"),
    "a part too few": (json.dumps(LINE | {"query": []}), "cannot be read: ValueError"),
    "nested too deep": ("[" * 100_000, "cannot be read"),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_list_of_episodes_that_is_wrong_is_an_error(tmp_path: Path, case: str) -> None:
    text, message = LISTS[case]
    domain = Domain("d", {"a": [picture()] * 3})
    (tmp_path / "episodes.jsonl").write_text(text)
    with pytest.raises(DataError, match=f"episode manifest {tmp_path}/episodes.jsonl.*{message}"):
        read_manifest(tmp_path / "episodes.jsonl", {"d": (domain, "all")})


# ----- recipes -----

RECIPES = {
    "code": '!!python/object/apply:os.mkdir ["harm"]',
    "code in a value": 'seed: !!python/object/apply:os.mkdir ["harm"]',
    "a module": "output_dir: !!python/name:os.mkdir",
    "nested too deep": "[" * 5_000,
    "an argument that does not exist": "trust_remote_code: true",
    "bytes": "\x00",
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe_that_is_wrong_is_one_line_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPES[case])
    assert main(["recipe.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: recipe.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_numbers_of_pixels_between_one_limit_and_two_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80)
    folder = folder_of(tmp_path / "domain")  # of 96
    with pytest.warns(Image.DecompressionBombWarning):
        assert np.asarray(load_domain(f"folder:{folder}").class_images["class0"][0]).shape == (8, 12, 3)
