"""The files in recipes/ are what they say they are, and run on small stand-ins for their data."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

from smat_peft.assets import DEMO_RECIPE
from smat_peft.commands import meta_tune
from smat_peft.commands.arguments import DataArguments
from smat_peft.evaluation.records import Record
from tests.class_folders import write_classes
from tests.episodes.h5_source import specification, write_source
from tests.small_models import save_vit

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
RUN = {"demo.yaml"}  # its figures are in the README
SETTINGS = {"dino_vits16.yaml", "dino_vitb16.yaml"}  # of training; the others are protocols
PROTOCOLS = [path for path in RECIPES if path.name not in RUN | SETTINGS]
ROLES = ("train_domains", "dev_ood_domains", "ood_domains")


def recipe(name: str) -> str:
    return str(ROOT / "recipes" / name)


def comment(path: Path) -> str:
    """What a recipe says before its first setting, as one line."""
    lines = path.read_text().split("\n\n")[0].splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def named_domains(path: Path) -> list[str]:
    return [spec for role in ROLES for spec in yaml.safe_load(path.read_text()).get(role, [])]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_parses(path: Path) -> None:
    settings = {name: value for part in meta_tune.parse([str(path)]) for name, value in vars(part).items()}
    given = yaml.safe_load(path.read_text())
    assert {name: settings[name] for name in given} == given


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_was_run_or_says_that_it_was_not(path: Path) -> None:
    assert ("Not run by us." in comment(path)) == (path.name not in RUN)


def test_the_demo_s_recipe_is_the_packaged_one() -> None:
    assert Path(recipe("demo.yaml")).resolve() == DEMO_RECIPE.resolve()


@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda path: path.name)
def test_a_protocol_holds_nothing_of_training_and_names_what_it_needs(path: Path) -> None:
    arguments = {field.name for field in dataclasses.fields(DataArguments)}
    assert yaml.safe_load(path.read_text()).keys() <= arguments  # so that other commands can read it
    places = [re.split(r"[?@]", spec.partition("{data_root}/")[2])[0] for spec in named_domains(path)]
    assert [place for place in places if place not in comment(path)] == []


@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda path: path.name)
def test_the_names_of_a_protocol_s_domains_differ(path: Path) -> None:
    parts = [spec.partition("?") for spec in named_domains(path)]
    names = [parse_qs(query).get("name", [Path(location).name])[0] for location, _, query in parts]
    assert len(set(names)) == len(names) > 0


def test_the_settings_of_training_are_the_paper_s() -> None:
    common = {
        "num_experts": 8,
        "gate_init_std": 0.5,
        "gate_eval": "reference",
        "episodes_per_step": 4,
        "gate_lr": 1e6,
        "multiplier_lr": 2e-3,
        "router_lr": 1e-4,
        "router_weight_decay": 1e-2,
        "delta_momentum": 0.9,
        "delta_weight_decay": 1e-4,
        "max_gate_grad_norm": 5,
        "max_router_grad_norm": 1,
        "logit_scale": 10,
        "inner_lr": 1e-3,
        "adapted_teacher_lr": 5e-3,
        "router_z_weight": 1e-4,
        "distillation_temperature": 2,
        "distillation_weight": 0.25,
        "validation_steps": 500,
        "warmup_steps": 5 * 500,
        "lr_decay_steps": 50 * 500,
        "lr_interval": 500,
        "temperature_episodes": 18_000,
        "image_size": 128,
        "max_ways": 50,
        "max_support": 500,
        "queries": 10,
        "ways": None,
        "shots": None,
        "validation_episodes": 120,
        "evaluation_episodes": 600,
        "mixed_precision": "fp16",
    }
    own = {
        "dino_vits16.yaml": {"target_sparsity": 0.9, "delta_lr": 1e-4, "max_steps": 25 * 500},
        "dino_vitb16.yaml": {"target_sparsity": 0.95, "delta_lr": 5e-4, "max_steps": 50 * 500},
    }
    assert own.keys() == SETTINGS
    for name, wanted in own.items():
        parts = meta_tune.parse([recipe("meta_dataset.yaml"), recipe(name)])
        settings = {key: value for part in parts for key, value in vars(part).items()}
        wanted = wanted | common
        assert {key: settings[key] for key in wanted} == wanted


PAGE = ROOT / "docs" / "protocols.md"


@pytest.mark.parametrize("path", [PAGE, *PROTOCOLS], ids=lambda path: path.name)
def test_the_command_that_a_page_or_a_protocol_shows_combines_it_with_settings(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"accelerate launch examples/meta_tune\.py (.*)", path.read_text())
    assert commands
    for command in commands:
        _, model, data, *_ = meta_tune.parse(command.split())
        assert model.model_name_or_path.startswith("facebook/dino-")
        assert data.train_domains


def test_a_later_recipe_goes_before_an_earlier_one_and_arguments_before_both(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("seed: 1\nmax_steps: 2\nood_domains: [a, b]\nqueries: 3\n")
    (tmp_path / "second.yaml").write_text("seed: 4\nmax_steps: 5\nood_domains: [c]\n")
    arguments, _, data, *_ = meta_tune.parse([str(tmp_path / f"{n}.yaml") for n in ("first", "second")] + ["--seed=6"])
    assert (arguments.seed, arguments.max_steps, data.ood_domains, data.queries) == (6, 5, ["c"], 3)


# Stand-ins. What they share with the data is what a recipe relies on: layout, columns, splits of classes.

H5_CLASSES = {"traffic_sign": (0, 0, 6), "mscoco": (0, 6, 7)}  # training, validation and test; others (6, 5, 5)
TABLES = {
    "uoft-cs/cifar10": ("img", {"label": 6}),
    "uoft-cs/cifar100": ("img", {"fine_label": 6, "coarse_label": 3}),
    "ylecun/mnist": ("image", {"label": 6}),
    "ethz/food101": ("image", {"label": 6}),
    "timm/oxford-iiit-pet": ("image", {"label": 37, "label_cat_dog": 2}),
    "tanganke/stanford_cars": ("image", {"label": 6}),
    "flwrlabs/femnist": ("image", {"character": 40}),
    "zalando-datasets/fashion_mnist": ("image", {"label": 6}),
    "timm/eurosat-rgb": ("image", {"label": 6}),
    "AI-Lab-Makerere/beans": ("image", {"labels": 3}),
}


def draw(random: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return random.integers(0, 256, (8, 8, 3), dtype=np.uint8)


def draw_table(name: str, config: str | None, split: str | None) -> datasets.Dataset:
    column, labels = TABLES[name]
    random, classes, rows = np.random.default_rng(0), max(labels.values()), []
    for number in range(20 * classes):
        with BytesIO() as file:
            Image.fromarray(draw(random)).save(file, "PNG")
            picture = {"bytes": file.getvalue(), "path": None}
        rows.append({column: picture} | {label: number % count for label, count in labels.items()})
    features: dict[str, Any] = {column: datasets.Image()}
    features |= {label: datasets.ClassLabel(count) for label, count in labels.items()}
    return datasets.Dataset.from_list(rows, datasets.Features(features))


def draw_h5(folder: Path, classes: tuple[int, int, int]) -> None:
    random = np.random.default_rng(0)
    write_source(folder, specification(classes, 4, folder.name), 4, lambda *_: draw(random))


def draw_folder(folder: Path, images: int) -> None:
    random, names = np.random.default_rng(0), [f"{folder.name} {number}" for number in range(5)]
    write_classes(folder, names, images, lambda *_: Image.fromarray(draw(random)))


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipes name under it, and a backbone."""
    root = tmp_path_factory.mktemp("data")
    for source in re.findall(r"h5:\{data_root\}/(\w+)", Path(recipe("meta_dataset.yaml")).read_text()):
        draw_h5(root / source, H5_CLASSES.get(source, (6, 5, 5)))
    for domain in ("sketch", "clipart"):
        draw_folder(root / "domainnet" / domain, 20)
    for source in ("CropDiseases", "EuroSAT", "ISIC", "ChestX"):
        draw_folder(root / "bscd_fsl" / source, 65)
    save_vit(root / "vit")
    return root


@pytest.fixture
def run(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Record]]:
    """A function that meta-tunes for two updates by recipes, and returns the records of the backbone's evaluation."""
    monkeypatch.setattr(datasets, "load_dataset", draw_table)
    monkeypatch.setattr("smat_peft.commands.protocol.shared_content", lambda *_: [])  # the stand-ins are all alike
    found = []
    evaluate = meta_tune.evaluate
    monkeypatch.setattr(meta_tune, "evaluate", lambda *a, **kw: found.append(evaluate(*a, **kw)) or found[0])

    def run(*names: str) -> list[Record]:
        small = {
            "model_name_or_path": data_root / "vit",
            "data_root": data_root,
            "output_dir": tmp_path / "run",
            "image_size": 16,
            "num_experts": 2,
            "max_ways": 5,
            "max_support": 10,
            "threads": 1,
            "max_steps": 2,
            "warmup_steps": 1,
            "episodes_per_step": 1,
            "validation_steps": 2,
            "validation_episodes": 1,
            "evaluation_episodes": 1,
            "mixed_precision": "no",
            "checkpointing_steps": 0,
        }
        assert meta_tune.main([*map(recipe, names), *(f"--{name}={value}" for name, value in small.items())]) == 0
        return [record for record in found[0].records if record.predictor == "backbone"]

    return run


def shapes(records: list[Record], role: str) -> dict[str, tuple[int, int, int]]:
    return {each.domain: (each.ways, each.support, each.queries) for each in records if each.role == role}


@pytest.mark.parametrize("settings", sorted(SETTINGS))
def test_meta_dataset_s_protocol_runs(run: Any, settings: str) -> None:
    records = run("meta_dataset.yaml", settings)
    sources = ["ilsvrc_2012", "omniglot", "aircraft", "cu_birds", "dtd", "quickdraw", "fungi", "vgg_flower"]
    assert list(shapes(records, "id")) == sources
    ood = shapes(records, "test_ood")
    assert list(ood) == [
        *("traffic_sign", "mscoco", "cifar10", "cifar100", "mnist"),
        *("sketch", "clipart", "food", "pet", "cars"),
    ]
    for name in ("sketch", "clipart", "food", "pet", "cars"):
        assert ood[name] == (5, 25, 75)
    varied = {shape for name, shape in (shapes(records, "id") | ood).items() if shape != (5, 25, 75)}
    assert len(varied) > 3


def test_mscoco_is_tested_on_its_test_classes(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", draw_table)
    data = meta_tune.parse([recipe("meta_dataset.yaml"), "--data_root", str(data_root), "--evaluation_episodes=0"])[2]
    splits = {entry.domain.name: entry.split for entry in meta_tune.load_protocol(data)}
    assert splits["mscoco"] == "test"
    assert splits["traffic_sign"] == "all"


def test_bscd_fsl_takes_the_place_of_other_ood_domains(run: Any) -> None:
    records = run("meta_dataset.yaml", "bscd_fsl.yaml", "dino_vits16.yaml")
    assert len(shapes(records, "id")) == 8
    assert shapes(records, "test_ood") == {
        f"{source}-{shots}": (5, 5 * shots, 75)
        for source in ("CropDiseases", "EuroSAT", "ISIC", "ChestX")
        for shots in (5, 20, 50)
    }


def test_the_protocol_of_open_licences_runs(run: Any) -> None:
    records = run("open_licences.yaml", "dino_vits16.yaml")
    assert shapes(records, "id") == {"femnist": (5, 25, 50), "pet": (5, 25, 50)}
    assert shapes(records, "dev_ood") == {"fashion_mnist": (5, 25, 50)}
    assert shapes(records, "test_ood") == {"eurosat": (5, 25, 50), "beans": (3, 15, 30)}


def test_the_lines_that_sort_isic_and_chestx_do_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ISIC2018_Task3_Training_Input/ISIC_1.jpg", "images/a.png", "images/b.png", "images/c.png"):
        (tmp_path / "downloads" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "downloads" / name).touch()
    (tmp_path / "downloads" / "ISIC2018_Task3_Training_GroundTruth.csv").write_text("image,MEL,NV\nISIC_1,0.0,1.0\n")
    table = "Image Index,Finding Labels,Age\na.png,Mass,1\nb.png,Mass|Nodule,2\nc.png,No Finding,3\n"
    (tmp_path / "downloads" / "Data_Entry_2017.csv").write_text(table)
    (lines,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    exec(compile(lines, "protocols.md", "exec"), {})
    sorted_images = {str(path.relative_to(tmp_path / "data")) for path in (tmp_path / "data").rglob("*.*")}
    assert sorted_images == {"bscd_fsl/ISIC/NV/ISIC_1.jpg", "bscd_fsl/ChestX/Mass/a.png"}


def test_docs_name_every_recipe_and_no_other() -> None:
    page = PAGE.read_text()
    assert set(re.findall(r"`(\w+\.yaml)`", page)) == {path.name for path in RECIPES}
