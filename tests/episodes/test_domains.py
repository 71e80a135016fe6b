import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smat_peft.episodes.builtin import ROLES
from smat_peft.episodes.domain import EVERY_AUGMENTATION, Domain, split_classes
from smat_peft.episodes.domains import load_domain, load_domains
from smat_peft.episodes.image_files import FORMATS, read_image
from smat_peft.errors import ConfigurationError, DataError
from tests.class_folders import write_classes
from tests.episodes.open_files import no_file_stays_open


def save_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (10, 20, 30)).save(path)
    return path


def make_folder(path: Path, images: int = 3) -> Path:
    """Six classes; image `j` of class `c` is full of (c, j, 0)."""
    names = [f"class{number}" for number in range(6)]
    return write_classes(path, names, images, lambda number, image: Image.new("RGB", (6, 4), (number, image, 0)))


def test_a_folder_of_class_folders_is_a_domain_of_its_name(tmp_path: Path) -> None:
    domain = load_domain(f"folder:{make_folder(tmp_path / 'flowers')}")
    assert domain.name == "flowers"
    assert domain.classes("all") == [f"class{number}" for number in range(6)]
    assert domain.augment == EVERY_AUGMENTATION
    images = domain.images("all", "class4")
    assert [image.getpixel((0, 0)) for image in images] == [(4, 0, 0), (4, 1, 0), (4, 2, 0)]
    assert [image.getpixel((0, 0)) for image in images[1:]] == [(4, 1, 0), (4, 2, 0)]
    assert {name: domain.splits[name] for name in domain.splits} == split_classes(domain.classes("all"))


def test_a_folder_named_by_a_dot_or_a_tilde_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_folder(tmp_path / "flowers"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_domain("folder:.").name == "flowers"
    assert load_domain("folder:~/flowers/").name == "flowers"


def test_the_order_of_images_is_that_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "flowers", images=12)
    expected = load_domain(f"folder:{folder}")
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: sorted(listed(path), reverse=True))
    backwards = load_domain(f"folder:{folder}")
    assert backwards.classes("all") == expected.classes("all")
    assert backwards.images("all", "class0").places == expected.images("all", "class0").places  # type: ignore[attr-defined]


def test_hidden_files_and_other_files_are_passed_over(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "flowers")
    save_image(folder / ".cache" / "0.png")
    save_image(folder / "class0" / ".hidden.png")
    (folder / "README.md").write_text("about flowers")
    (folder / "class0" / "notes.txt").write_text("about roses")
    domain = load_domain(f"folder:{folder}")
    assert len(domain.classes("all")) == 6
    assert len(domain.images("all", "class0")) == 3


@pytest.mark.parametrize("suffix", sorted(FORMATS))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_format_is_read_as_rgb(tmp_path: Path, suffix: str, mode: str) -> None:
    if suffix == ".pgm":
        mode = "L"
    path = tmp_path / f"image{suffix.upper()}"
    Image.new(mode, (16, 16), 200 if mode == "L" else (200, 100, 50)).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (16, 16))
    expected = (200, 200, 200) if mode == "L" else (200, 100, 50)
    assert np.allclose(image.getpixel((8, 8)), expected, atol=4)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    image = Image.new("RGB", (4, 4), (255, 0, 0)).quantize(4)
    image.info["transparency"] = b"\x80\xff"
    image.save(path)
    assert read_image(path).mode == "RGB"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "icon.png"
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 2))
    image.convert(mode).save(path)
    assert np.asarray(read_image(path))[:, 0, 0].tolist() == [0, 0, 255, 255]


def test_an_image_is_turned_as_its_exif_entry_says(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees
    image.save(path, exif=exif, quality=95)
    turned = read_image(path)
    assert turned.size == (20, 40)
    assert min(turned.getpixel((10, 5))) > 200  # type: ignore[type-var, arg-type]
    assert max(turned.getpixel((10, 35))) < 50  # type: ignore[type-var, arg-type]


def test_reading_leaves_no_file_open(tmp_path: Path) -> None:
    domain = load_domain(f"folder:{make_folder(tmp_path / 'flowers')}")
    with no_file_stays_open(tmp_path):
        kept = list(domain.images("all", "class0"))
    assert len(kept) == 3


def test_a_domain_can_be_pickled(tmp_path: Path) -> None:
    domain = load_domain(f"folder:{make_folder(tmp_path / 'flowers')}")
    copy = pickle.loads(pickle.dumps(domain))
    assert copy.images("all", "class1")[0].getpixel((0, 0)) == (1, 0, 0)


def test_splits_come_from_the_folders_own_file_or_from_the_one_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "flowers")
    own = {"train": ["class5", "class0"], "validation": ["class1"], "test": ["class2"]}
    (folder / "splits.json").write_text(json.dumps(own))
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"train": ["class3"]}))
    domain = load_domain(f"folder:{folder}")
    assert [domain.classes(split) for split in ("train", "validation", "test")] == list(own.values())
    assert len(domain.classes("all")) == 6
    named = load_domain(f"folder:{folder}?splits={other}")
    assert [named.classes(split) for split in ("train", "validation", "test")] == [["class3"], [], []]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "must hold"),
        ("{}", "must hold"),
        ('{"train": "class0"}', "must hold"),
        ('{"train": [0]}', "must hold"),
        ('{"train": 3}', "must hold .*with the names of classes"),
        ('{"dev": ["class0"]}', "unknown split 'dev'"),
        ('{"train": ["rose"]}', "'rose', which has no images"),
        ('{"train": ["../class0"]}', r"names class '\.\./class0', which has no images"),
        ('{"train": ["class0"], "test": ["class0"]}', "class 'class0' is in both 'train' and 'test'"),
    ],
)
def test_a_splits_file_that_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    folder = make_folder(tmp_path / "flowers")
    (folder / "splits.json").write_text(text)
    with pytest.raises(DataError, match=f"splits.json.*{message}"):
        load_domain(f"folder:{folder}")


def test_a_missing_splits_file_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "flowers")
    with pytest.raises(DataError, match=r"nowhere\.json"):
        load_domain(f"folder:{folder}?splits={tmp_path / 'nowhere.json'}")


def test_augmentations_of_a_folder_can_be_chosen(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "letters")
    assert load_domain(f"folder:{folder}?augment=crop,colour").augment == {"crop", "colour"}
    assert load_domain(f"folder:{folder}?augment=none").augment == frozenset()
    with pytest.raises(DataError, match="augment=crop,flip"):
        load_domain(f"folder:{folder}?augment=crop,flip")


def test_each_folder_in_a_folder_is_a_domain(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden"):
        make_folder(tmp_path / "domains" / name)
    (tmp_path / "domains" / "README.md").write_text("about the domains")
    assert [domain.name for domain in load_domains([f"folder:{tmp_path}/domains/*"])] == ["a", "b"]
    with pytest.raises(DataError, match="load_domains"):
        load_domain(f"folder:{tmp_path}/domains/*")


def test_a_role_of_the_built_in_suite_is_all_its_domains() -> None:
    for role in ("id", "dev_ood", "test_ood"):
        domains = load_domains([f"builtin:{role}"])
        assert [domain.name for domain in domains] == list(ROLES[role])
        with pytest.raises(DataError, match="load_domains"):
            load_domain(f"builtin:{role}")
    assert isinstance(load_domain("builtin:greek"), Domain)


def test_two_domains_of_one_name_are_refused(tmp_path: Path) -> None:
    first, second = make_folder(tmp_path / "one" / "flowers"), make_folder(tmp_path / "two" / "flowers")
    with pytest.raises(DataError, match=re.escape(f"'flowers', from 'folder:{first}' and 'folder:{second}'")):
        load_domains([f"folder:{first}", f"folder:{second}"])


def test_a_folder_that_is_arranged_otherwise_says_how_it_should_be(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="empty holds no class folders"):
        load_domain(f"folder:{empty}")
    with pytest.raises(DataError, match="empty holds no folders"):
        load_domains([f"folder:{empty}/*"])
    flat = save_image(tmp_path / "flat" / "0.png").parent
    with pytest.raises(DataError, match="flat holds images but no class folders"):
        load_domain(f"folder:{flat}")
    make_folder(tmp_path / "domains" / "flowers")
    with pytest.raises(DataError, match=r"holds a folder, 'class0'.*domains/\*"):
        load_domain(f"folder:{tmp_path}/domains")


def test_a_class_that_skipping_leaves_without_images_is_an_error(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "flowers", images=2)
    (folder / "class3" / "1.png").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="1 images"),
        pytest.raises(DataError, match="class 'class3' has 1 usable images"),
    ):
        load_domain(f"folder:{folder}", on_bad_image="skip")


def test_an_unknown_policy_for_bad_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'ignore'"):
        load_domain(f"folder:{make_folder(tmp_path / 'flowers')}", on_bad_image="ignore")  # type: ignore[arg-type]


def test_a_class_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "garden")
    (folder / "more").symlink_to(make_folder(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="garden/more is a link"):
        load_domain(f"folder:{folder}")


def test_a_link_within_the_folder_and_a_linked_folder_are_read(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "flowers")
    (folder / "class0" / "again.png").symlink_to(folder / "class1" / "0.png")
    (tmp_path / "linked").symlink_to(folder)
    domain = load_domain(f"folder:{tmp_path / 'linked'}")
    assert domain.name == "linked"
    assert len(domain.images("all", "class0")) == 4
