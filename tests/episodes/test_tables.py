import io
import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image
from pyarrow import parquet

from smat_peft.episodes.domain import split_classes
from smat_peft.episodes.domains import load_domain
from smat_peft.episodes.images import ImageTransform
from smat_peft.episodes.sampling import EpisodeSampler
from smat_peft.errors import DataError
from tests.episodes.loading import same
from tests.episodes.open_files import no_file_stays_open

NAMES = ["rose", "tulip", "daisy", "lily", "iris", "poppy"]
COUNT = 3  # images of a class

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def quiet() -> Any:
    """No progress bars, which the library draws while it writes the tests' data sets."""
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def encoded(row: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (5, 4), (row, 0, 0)).save(content, "PNG")
    return content.getvalue()


def make_table(**columns: Any) -> Dataset:
    """Image `row` is full of (row, 0, 0), its class is `row % 6`; more columns by name, each (values, type)."""
    rows = range(COUNT * len(NAMES))
    every = {
        "image": ([{"bytes": encoded(row), "path": None} for row in rows], datasets.Image()),
        "label": ([row % len(NAMES) for row in rows], ClassLabel(names=NAMES)),
    } | columns
    kept = {name: column for name, column in every.items() if column is not None}
    features = Features({name: kind for name, (_, kind) in kept.items()})
    return Dataset.from_dict({name: values for name, (values, _) in kept.items()}, features)


def saved(table: Dataset | DatasetDict, folder: Path) -> str:
    table.save_to_disk(str(folder))
    return f"disk:{folder}"


def reds(domain: Any, name: str) -> list[int]:
    return [image.getpixel((0, 0))[0] for image in domain.images("all", name)]


def test_a_saved_data_set_is_a_domain_of_its_folders_name(tmp_path: Path) -> None:
    domain = load_domain(saved(make_table(), tmp_path / "flowers"))
    assert domain.name == "flowers"
    assert domain.classes("all") == NAMES
    assert [reds(domain, name) for name in NAMES] == [[c, c + 6, c + 12] for c in range(6)]
    assert domain.splits == split_classes(NAMES)
    assert [image.getpixel((0, 0)) for image in domain.images("all", "lily")[1:]] == [(9, 0, 0), (15, 0, 0)]


def test_parquet_files_are_a_domain(tmp_path: Path) -> None:
    table = make_table()
    (tmp_path / "flowers").mkdir()
    table.select(range(12)).to_parquet(tmp_path / "flowers" / "part-0.parquet")
    table.select(range(12, 18)).to_parquet(tmp_path / "flowers" / "part-1.parquet")
    domain = load_domain(f"parquet:{tmp_path}/flowers/part-*.parquet")
    assert (domain.name, domain.classes("all"), reds(domain, "lily")) == ("flowers", NAMES, [3, 9, 15])
    one = load_domain(f"parquet:{tmp_path}/*/part-0.parquet?splits={write_splits(tmp_path)}")
    assert (one.name, one.classes("train")) == (tmp_path.name, ["iris", "rose"])
    table.to_parquet(tmp_path / "garden.parquet")
    assert load_domain(f"parquet:{tmp_path}/garden.parquet").name == "garden"


def write_splits(folder: Path) -> Path:
    path = folder / "splits.json"
    path.write_text(json.dumps({"train": ["iris", "rose"], "validation": ["lily"], "test": []}))
    return path


def test_splits_and_augmentations_can_be_chosen(tmp_path: Path) -> None:
    spec = saved(make_table(), tmp_path / "flowers")
    domain = load_domain(f"{spec}?splits={write_splits(tmp_path)}&augment=crop,colour")
    assert [domain.classes(split) for split in ("train", "validation", "test")] == [["iris", "rose"], ["lily"], []]
    assert domain.augment == {"crop", "colour"}
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["oak"]}))
    with pytest.raises(DataError, match=r"splits\.json: domain 'flowers'.*'oak', which has no images"):
        load_domain(f"{spec}?splits={tmp_path / 'splits.json'}")


@pytest.mark.parametrize(
    ("spec", "arguments", "name"),
    [
        ("hub:someone/flowers", ("someone/flowers", None, None), "flowers"),
        ("hub:flowers:large", ("flowers", "large", None), "flowers:large"),
        ("hub:someone/flowers@test", ("someone/flowers", None, "test"), "flowers@test"),
        ("hub:a/b:c@train[:50%]+test?label=label", ("a/b", "c", "train[:50%]+test"), "b:c@train[:50%]+test"),
    ],
)
def test_a_data_set_of_the_hub_is_loaded_as_named(
    monkeypatch: pytest.MonkeyPatch, spec: str, arguments: tuple[Any, ...], name: str
) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, config: str | None, *, split: str | None) -> Any:
        asked.append((path, config, split))
        return make_table() if split else DatasetDict(train=make_table())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    domain = load_domain(spec)
    assert (asked, domain.name) == ([arguments], name)
    assert reds(domain, "tulip") == [1, 7, 13]


def test_a_data_set_that_the_hub_does_not_give_is_named() -> None:
    with pytest.raises(
        DataError, match=r"hub:someone/nothing@test cannot be loaded \(\w+: .*\); see that its name is right"
    ):
        load_domain("hub:someone/nothing@test")
    with pytest.raises(DataError, match="names no data set; write hub:NAME"):
        load_domain("hub:@test")


def test_of_several_splits_one_must_be_chosen(tmp_path: Path) -> None:
    table = make_table()
    spec = saved(DatasetDict(train=table.select(range(6)), test=table.select(range(6, 18))), tmp_path / "flowers")
    with pytest.raises(DataError, match=rf"{spec} has the splits train, test; choose with {spec}@train"):
        load_domain(spec)
    domain = load_domain(f"{spec}@test")
    assert (domain.name, reds(domain, "rose")) == ("flowers@test", [6, 12])
    with pytest.raises(DataError, match="there is no split 'dev'; there are train, test"):
        load_domain(f"{spec}@dev")
    with pytest.raises(DataError, match="there is no split 'train'; there are none"):
        load_domain(f"{saved(table, tmp_path / 'single')}@train")
    (tmp_path / "at@home").mkdir()
    assert load_domain(saved(table, tmp_path / "at@home")).name == "at@home"


def test_columns_are_found_by_type_whatever_their_names(tmp_path: Path) -> None:
    table = make_table(url=(["x"] * 18, Value("string")), size=([1.5] * 18, Value("float32")))
    renamed = table.rename_columns({"image": "img", "label": "fine"}).select_columns(["size", "fine", "url", "img"])
    assert reds(load_domain(saved(renamed, tmp_path / "flowers")), "poppy") == [5, 11, 17]


def test_where_two_columns_fit_both_are_listed_and_one_can_be_named(tmp_path: Path) -> None:
    masks = ([{"bytes": encoded(100), "path": None}] * 18, datasets.Image())
    coarse = ([row % 2 for row in range(18)], ClassLabel(names=["small", "tall"]))
    spec = saved(make_table(mask=masks, coarse=coarse), tmp_path / "flowers")
    with pytest.raises(DataError, match=r"columns image, mask could each be the image; choose with [?]image=image"):
        load_domain(spec)
    with pytest.raises(DataError, match=r"columns label, coarse could each be the label; choose with [?]label=label"):
        load_domain(f"{spec}?image=image")
    domain = load_domain(f"{spec}?image=mask&label=coarse")
    assert (domain.classes("all"), set(reds(domain, "tall"))) == (["small", "tall"], {100})


def test_labels_may_be_strings_or_whole_numbers_where_they_are_named(tmp_path: Path) -> None:
    words = ([NAMES[row % 6] for row in range(18)], Value("string"))
    numbers = ([10 - row % 6 for row in range(18)], Value("int16"))
    weights = ([row / 2 for row in range(18)], Value("float64"))
    spec = saved(make_table(label=None, word=words, number=numbers, weight=weights), tmp_path / "flowers")
    columns = r"image \(Image\), word \(string\), number \(int16\), weight \(float64\)"
    with pytest.raises(DataError, match=rf"no column is of type ClassLabel.*[?]label=COLUMN.*{columns}"):
        load_domain(spec)
    assert load_domain(f"{spec}?label=word").classes("all") == sorted(NAMES)
    by_number = load_domain(f"{spec}?label=number")
    assert by_number.classes("all") == ["5", "6", "7", "8", "9", "10"]
    assert reds(by_number, "10") == [0, 6, 12]
    for column, kind in (("weight", "float64"), ("image", "Image")):
        with pytest.raises(DataError, match=f"column '{column}' holds {kind}; labels are of type"):
            load_domain(f"{spec}?label={column}")
    with pytest.raises(DataError, match=rf"there is no column 'wort'; its columns are {columns}"):
        load_domain(f"{spec}?label=wort")


def test_bytes_in_a_named_column_are_images(tmp_path: Path) -> None:
    table = make_table(image=None, raw=([encoded(row) for row in range(18)], Value("binary")))
    spec = saved(table, tmp_path / "flowers")
    with pytest.raises(DataError, match=r"no column is of type Image; name one with [?]image=COLUMN"):
        load_domain(spec)
    assert reds(load_domain(f"{spec}?image=raw"), "rose") == [0, 6, 12]
    with pytest.raises(DataError, match=r"column 'label' holds ClassLabel.*, not images"):
        load_domain(f"{spec}?image=label")


def test_rows_without_a_label_are_counted(tmp_path: Path) -> None:
    unlabelled = ([-1] * 2 + [row % 6 for row in range(16)], ClassLabel(names=NAMES))
    with pytest.raises(DataError, match="2 rows have no label"):
        load_domain(saved(make_table(label=unlabelled), tmp_path / "one"))
    words = ([None] * 3 + [NAMES[row % 6] for row in range(15)], Value("string"))
    with pytest.raises(DataError, match="3 rows have no label"):
        load_domain(saved(make_table(label=words), tmp_path / "two") + "?label=label")


def test_classes_of_no_or_one_image_are_left_out(tmp_path: Path) -> None:
    labels = ([0] * 8 + [2] * 9 + [4], ClassLabel(names=NAMES))
    with pytest.warns(UserWarning, match="1 classes have a single image and are left out"):
        domain = load_domain(saved(make_table(label=labels), tmp_path / "flowers"))
    assert domain.classes("all") == ["rose", "daisy"]


def test_an_empty_data_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_table().select([]).to_parquet(tmp_path / "flowers.parquet")
    with pytest.raises(DataError, match=r"parquet:.*flowers\.parquet cannot be loaded .* it is not empty"):
        load_domain(f"parquet:{tmp_path}/flowers.parquet")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: make_table().select([]))
    with pytest.raises(DataError, match="hub:flowers@dev has no rows; choose another split"):
        load_domain("hub:flowers@dev")


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "flowers.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"flowers\.parquet cannot be loaded"):
        load_domain(f"parquet:{tmp_path}/flowers.parquet")


def test_only_the_images_drawn_are_decoded(tmp_path: Path) -> None:
    damaged = [{"bytes": b"no image" if row >= 6 else encoded(row), "path": None} for row in range(18)]
    spec = saved(make_table(image=(damaged, datasets.Image())), tmp_path / "flowers")
    images = load_domain(spec).images("all", "tulip")
    assert images[0].getpixel((0, 0)) == (1, 0, 0)
    with pytest.raises(DataError, match=r"the image in row 7 of disk:.*flowers cannot be read"):
        images[1]


def test_files_that_a_table_names_are_read_from_its_folder_or_from_one_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    (tmp_path / "outside").mkdir()
    paths = [tmp_path / ("outside" if row == 7 else "flowers") / f"{row}.png" for row in range(18)]
    for row, path in enumerate(paths):
        path.write_bytes(encoded(row))
    paths[13] = tmp_path / "flowers" / ".." / "outside" / "7.png"
    table = make_table(image=([{"bytes": None, "path": str(path)} for path in paths], datasets.Image()))
    table.to_parquet(tmp_path / "flowers" / "table.parquet")
    spec = f"parquet:{tmp_path}/flowers/table.parquet"
    assert reds(load_domain(spec), "rose") == [0, 6, 12]
    for place in (1, 2):
        with pytest.raises(DataError, match=r"is a file outside the data set: .*7\.png; .* \?files="):
            load_domain(spec).images("all", "tulip")[place]
    assert reds(load_domain(f"{spec}?files={tmp_path / 'outside'}"), "tulip") == [1, 7, 7]


def test_a_row_with_neither_an_image_nor_a_file_is_empty(tmp_path: Path) -> None:
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    images = pyarrow.array([{"bytes": None, "path": None}] * 2, kind)
    parquet.write_table(pyarrow.table({"image": images, "label": ["rose", "rose"]}), tmp_path / "flowers.parquet")
    domain = load_domain(f"parquet:{tmp_path}/flowers.parquet?image=image&label=label")
    with pytest.raises(DataError, match=r"row 0 of .*flowers\.parquet is empty"):
        domain.images("all", "rose")[0]


def test_bad_images_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    damaged: list[Any] = [{"bytes": encoded(row), "path": None} for row in range(18)]
    damaged[3], damaged[5] = None, {"bytes": None, "path": "/nowhere/5.png"}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: make_table(image=(damaged, datasets.Image())))
    domain = load_domain("hub:flowers@train")
    for name, message in (("lily", "row 3 of .* is empty"), ("poppy", r"row 5 of .* is no file here: /nowhere/5\.png")):
        with pytest.raises(DataError, match=message):
            domain.images("all", name)[0]
    with pytest.warns(UserWarning, match=r"2 images cannot be read and are left out:\n.*row 3 .*\n.*row 5 "):
        domain = load_domain("hub:flowers@train", on_bad_image="skip")
    assert (reds(domain, "lily"), reds(domain, "poppy"), reds(domain, "rose")) == ([9, 15], [11, 17], [0, 6, 12])


def test_images_that_lie_in_the_librarys_cache_are_read_from_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for row in range(18):
        (tmp_path / f"{row}.png").write_bytes(encoded(row))
    paths = [{"bytes": None, "path": str(tmp_path / f"{row}.png")} for row in range(18)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: make_table(image=(paths, datasets.Image())))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    assert reds(load_domain("hub:flowers@train"), "iris") == [4, 10, 16]


def test_a_formatted_or_filtered_data_set_is_read_as_it_is_meant(tmp_path: Path) -> None:
    table = make_table().with_format("numpy", columns=["label"]).filter(lambda label: label != 0, input_columns="label")
    domain = load_domain(saved(table, tmp_path / "flowers"))
    assert domain.classes("all") == NAMES[1:]
    assert reds(domain, "daisy") == [2, 8, 14]


def test_reading_leaves_no_file_open_and_a_pickled_sampler_gives_the_same_episodes(tmp_path: Path) -> None:
    domain = load_domain(saved(make_table(), tmp_path / "flowers"))
    sampler = EpisodeSampler([domain], "all", 5, 1, 1, transform=ImageTransform((4, 4)))
    sampler[0]
    with no_file_stays_open(tmp_path):
        episodes = [sampler[index] for index in range(20)]
    copy = pickle.loads(pickle.dumps(sampler))
    assert same(copy[7], episodes[7])
    assert len(np.unique([episode.support[0, 0, 0, 0] for episode in episodes])) > 5
