"""`python -m smat_peft.classify`: what it prints and writes, and one clear line where the input has to be mended."""

import csv
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from transformers import ViTImageProcessorPil

from smat_peft import SMATConfig
from smat_peft.commands import compare_methods
from smat_peft.commands.classify import main
from smat_peft.few_shot import FewShotClassifier, load_backbone, loading

COLOURS = {"blue": (20, 40, 200), "green": (30, 180, 40), "red": (220, 30, 30)}


@pytest.fixture
def backbone(make_vit, tmp_path) -> str:
    folder = tmp_path / "backbone"
    make_vit().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def adapter(backbone, tmp_path, capsys) -> Path:
    torch.manual_seed(0)
    model = get_peft_model(load_backbone(backbone), SMATConfig(num_experts=3, init_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    capsys.readouterr()
    return tmp_path / "adapter"


@pytest.fixture
def support(tmp_path) -> Path:
    """Two images of each colour, in class folders."""
    for number, name in enumerate(COLOURS):
        draw(tmp_path / "support" / name, name, 2, seed=number)
    return tmp_path / "support"


@pytest.fixture
def photos(tmp_path) -> Path:
    """A flat folder: two images of each colour, named after it."""
    for number, name in enumerate(COLOURS):
        draw(tmp_path / "photos", name, 2, seed=10 + number)
    return tmp_path / "photos"


def draw(folder, colour, count, seed):
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 10, (count, 12, 12, 3))
    for number, pixels in enumerate(np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)):
        Image.fromarray(pixels).save(folder / f"{colour}-{number}.png")


def call(*arguments):
    return main([str(argument) for argument in arguments])


def failure(capsys, *arguments):
    """The one line of an error."""
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_flat_folder_is_labelled(support, photos, backbone, capsys):
    assert call(support, photos, "--model", backbone) == 0
    header, line, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "label", "probability", "runner-up", "probability"]
    assert set(line) <= {"-", " "}
    cells = [row.split() for row in rows]
    assert [row[0] for row in cells] == sorted(path.name for path in photos.iterdir())
    assert all(row[0].startswith(row[1]) and row[3] != row[1] for row in cells)
    assert all(float(row[2]) > float(row[4]) > 0 for row in cells)


def test_class_folders_of_queries_give_an_accuracy_with_its_interval(support, backbone, tmp_path, capsys):
    draw(tmp_path / "queries" / "red", "red", 3, seed=20)
    draw(tmp_path / "queries" / "blue", "blue", 2, seed=21)
    draw(tmp_path / "queries" / "green", "red", 1, seed=22)  # it is called green, and is red
    assert call(support, tmp_path / "queries", "--model", backbone) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:3] == ["image", "class", "label"]
    assert out[-1] == "accuracy 83.3 % (5 of 6 images; 95 % interval 43.6 to 97.0 %)"
    wrong = [line.split() for line in out if line.startswith(str(Path("green") / "red-0.png"))]
    assert [row[1:3] for row in wrong] == [["green", "red"]]


def test_all_probabilities_go_into_a_csv_file(support, photos, backbone, tmp_path):
    output = tmp_path / "answers.csv"
    assert call(support, photos, "--model", backbone, "--output", output, "--batch_size", 4) == 0
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    titles = [f"probability of {name}" for name in COLOURS]
    assert list(rows[0]) == ["image", "label", *titles]
    classifier = FewShotClassifier.from_pretrained(backbone)
    classifier.fit(*zip(*((path, path.parent.name) for path in sorted(support.glob("*/*"))), strict=True))
    expected = classifier.predict_proba(sorted(photos.iterdir()))
    written = np.array([[float(row[title]) for title in titles] for row in rows])
    np.testing.assert_allclose(written, expected, atol=1e-6)
    assert [row["label"] for row in rows] == classifier.classes_[expected.argmax(1)].tolist()


def test_an_adapter_is_used(support, photos, backbone, adapter, capsys):
    assert call(support, photos, "--model", backbone) == 0
    plain = capsys.readouterr().out
    assert call(support, photos, "--model", backbone, "--adapter", adapter) == 0
    adapted = capsys.readouterr().out
    assert adapted != plain
    assert call(support, photos, "--model", adapter) == 0
    assert capsys.readouterr().out == adapted


def test_images_of_any_size_fit_an_image_size(support, photos, backbone, capsys):
    Image.new("RGB", (50, 20), COLOURS["red"]).save(photos / "red-wide.jpg")
    assert call(support, photos, "--model", backbone, "--image_size", 24) == 0
    wide = next(line for line in capsys.readouterr().out.splitlines() if "wide" in line)
    assert wide.split()[1] == "red"


def test_an_unreadable_image_is_named(support, photos, backbone, capsys):
    (photos / "broken.png").write_bytes(b"no image")
    assert "broken.png cannot be read" in failure(capsys, support, photos, "--model", backbone)


def test_unreadable_images_can_be_left_out(support, photos, backbone, capsys):
    (photos / "broken.png").write_bytes(b"no image")
    (support / "red" / "broken.jpg").write_bytes(b"no image")
    assert call(support, photos, "--model", backbone, "--on_bad_image", "skip") == 0
    out, err = capsys.readouterr()
    assert "broken" not in out
    assert len(out.splitlines()) == 8
    assert [line.startswith("left out: ") and "broken" in line for line in err.splitlines()] == [True, True]


def test_what_is_not_read_is_counted_with_an_example_and_hidden_files_are_not(support, photos, backbone, capsys):
    for number, folder in enumerate((support / "red" / "2021", photos / "2021" / "may")):
        draw(folder, "red", 2, seed=60 + number)
    (support / "splits.json").write_text("{}")
    (support / "blue" / "a.raw").write_bytes(b"raw")
    (support / "blue-0.png").write_bytes((support / "blue" / "blue-0.png").read_bytes())
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (support / "red" / name).write_bytes(b"")
    assert call(support, photos, "--model", backbone) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        f"passed over in {support}: images beside class folders (1, such as blue-0.png)",
        f"passed over in {support}: folders within folders (1, such as {Path('red') / '2021'})",
        f"passed over in {support}: files of other formats (2, such as splits.json)",
        f"passed over in {photos}: folders within folders (1, such as {Path('2021') / 'may'})",
    ]
    assert len(out.splitlines()) == 8


def test_a_class_of_unreadable_images_is_named(support, photos, backbone, capsys):
    for path in (support / "red").iterdir():
        path.write_bytes(b"no image")
    assert call(support, photos, "--model", backbone, "--on_bad_image", "skip") == 2
    assert f"class folder {support / 'red'} holds no images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("break_input", "message"),
    [
        (lambda s, p: s.rename(s.with_name("gone")), "support is not a folder"),
        (lambda s, p: p.rename(p.with_name("gone")), "photos is not a folder"),
        (lambda s, p: [s.joinpath(name).rename(s.parent / name) for name in ("red", "blue")], "holds 1 class folders"),
        (lambda s, p: [s.joinpath(name).rename(s.parent / name) for name in COLOURS], "holds 0 class folders"),
        (lambda s, p: (s / "empty").mkdir(), "empty holds no images"),
        (lambda s, p: [path.unlink() for path in p.iterdir()], "photos holds no images"),
        (lambda s, p: draw(p / "red", "red", 1, 0), "both images and folders of images"),
        (lambda s, p: [path.unlink() for path in p.iterdir()] and draw(p / "grey", "red", 1, 0), "class 'grey' has no"),
    ],
)
def test_folders_that_cannot_be_used_are_named(support, photos, backbone, capsys, break_input, message):
    break_input(support, photos)
    assert message in failure(capsys, support, photos, "--model", backbone)


def test_without_queries_the_examples_label_each_other(support, backbone, tmp_path, capsys):
    draw(support / "red", "red", 3, seed=30)
    draw(support / "green", "green", 3, seed=31)
    draw(support / "blue", "blue", 6, seed=32)
    draw(support / "blue", "red", 1, seed=34)  # lies in the wrong folder
    (support / "blue" / "red-0.png").rename(support / "blue" / "stray.png")
    (support / "lone").mkdir()
    Image.linear_gradient("L").save(support / "lone" / "grey.png")
    assert call(support, "--model", backbone, "--output", tmp_path / "out.csv", "--sheet", tmp_path / "out.html") == 0
    out = capsys.readouterr().out
    first = r"leave-one-out accuracy 92\.3 % \(12 of 13 images; 95 % interval .*\); "
    assert re.match(first + r"guessing: 25\.0 %; always the largest class: 53\.8 %\n", out)
    assert re.search(r"^blue +red +1$", out, re.MULTILINE)
    assert re.search(rf"^{re.escape(str(Path('blue') / 'stray.png'))} +red +0\.\d+ +0\.\d+$", out, re.MULTILINE)
    assert "Not checked, with a single image each: lone." in out
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows if row["class"] != row["label"]] == [str(Path("blue") / "stray.png")]
    assert (tmp_path / "out.html").read_text().count("<figure") == 13


def test_good_examples_are_told_so(support, backbone, capsys):
    assert call(support, "--model", backbone) == 0
    out = capsys.readouterr().out
    assert "No image was taken for another class." in out
    assert "No image looks as if it lay in a wrong folder." in out
    assert "Not checked" not in out


def test_examples_are_left_out_of_fine_tuning_too_and_its_cost_is_told_first(support, backbone, capsys):
    assert call(support, "--model", backbone, "--adaptation", "lora", "--steps", 2) == 0
    printed = capsys.readouterr()
    assert re.match(r"fine-tuning 6 times, 2 steps each, takes about \d+ s\n", printed.err)
    assert "leave-one-out accuracy 100.0 %" in printed.out


def test_one_image_a_class_leaves_nothing_to_leave_out(support, backbone, capsys):
    for path in support.glob("*/*-1.png"):
        path.unlink()
    assert "one image of each class" in failure(capsys, support, "--model", backbone)


def test_methods_are_compared_and_one_is_named(support, backbone, adapter, capsys):
    for number, name in enumerate(COLOURS):
        draw(support / name, name, 4, seed=40 + number)
    for arguments, names in (
        ((), ["prototypes", "logistic regression", "LoRA"]),
        (("--adapter", adapter), ["prototypes", "logistic regression", "adapter", "adapter + LoRA"]),
        (("--model", adapter), ["prototypes", "logistic regression", "adapter", "adapter + LoRA"]),
    ):
        words = ("--model", backbone, "--compare", "--steps", 2, "--learning_rate", 0.001, *arguments)
        assert call(support, *words) == 0
        printed = capsys.readouterr()
        assert re.search(r"^fine-tuning 8 times, 2 steps each, takes about \d+ s$", printed.err, re.MULTILINE)
        lines = printed.out.splitlines()
        rows = lines[2 : 2 + len(names)]
        assert [re.split(r"  +", row)[:2] for row in rows] == [[name, "100.0"] for name in names]
        assert "8 splits. LoRA: 2 steps, learning rate 0.001." in lines
        noise = "with 12 images a difference below 14.0 points is noise"
        assert lines[-1] == f"Use prototypes: nothing is better, and {noise}."


def test_a_comparison_says_at_once_what_it_does_and_how_far_it_is(support, backbone, monkeypatch, capsys):
    def bar(parts, **_):
        print(f"0 of {len(parts)}", file=sys.stderr)
        return parts

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_methods, "tqdm", bar)
    monkeypatch.setattr(compare_methods, "methods_for", interrupted)  # which computes all features
    assert call(support, "--model", backbone, "--compare", "--steps", 1) == 130
    first, cost, *others = capsys.readouterr().err.splitlines()
    assert first == "comparing methods on 6 images"
    assert cost.startswith("fine-tuning 4 times")
    assert others == ["0 of 4", "stopped"]


def test_a_comparison_with_experts_loads_the_backbone_once(support, backbone, adapter, monkeypatch):
    loaded = []
    monkeypatch.setattr(loading, "load_backbone", lambda *args, **kw: loaded.append(args) or load_backbone(*args, **kw))
    assert call(support, "--model", backbone, "--adapter", adapter, "--compare", "--steps", 0) == 0
    assert len(loaded) == 1


def test_queries_can_be_fine_tuned_for(support, photos, backbone, capsys):
    assert call(support, photos, "--model", backbone) == 0
    plain = capsys.readouterr().out
    words = ("--adaptation", "full", "--steps", 3, "--learning_rate", 0.01, "--no-augment")
    assert call(support, photos, "--model", backbone, *words) == 0
    assert capsys.readouterr().out != plain


def test_images_of_no_class_can_be_rejected(support, photos, backbone, capsys):
    assert call(support, photos, "--model", backbone, "--reject_below", 1) == 0
    assert capsys.readouterr().out.count("none of these") == 6


def test_beside_a_rejection_stands_the_class_that_was_most_probable(support, photos, backbone, tmp_path, capsys):
    words = [support, photos, "--model", backbone]
    assert call(*words) == 0
    taken = re.findall(r"^(\S+\.png) +(\w+) +(\S+)", capsys.readouterr().out, re.MULTILINE)
    assert len(taken) == 6
    assert call(*words, "--reject_below", 1, "--sheet", tmp_path / "out.html") == 0
    out, page = capsys.readouterr().out, (tmp_path / "out.html").read_text()
    for name, label, probability in taken:
        assert re.search(rf"^{re.escape(name)} +none of these +{label} +{re.escape(probability)}$", out, re.MULTILINE)
    assert sorted(re.findall(r"<b>none of these</b><meter.*\nor (\w+) ", page)) == sorted(
        label for _, label, _ in taken
    )


def test_copies_of_an_example_do_not_vouch_for_it(support, backbone, capsys):
    assert call(support, "--model", backbone) == 0
    expected = capsys.readouterr().out
    copy = support / "red" / "red-1 (copy).png"
    copy.write_bytes((support / "red" / "red-1.png").read_bytes())
    assert call(support, "--model", backbone) == 0
    out, err = capsys.readouterr()
    assert out == expected
    assert f"left out: {Path('red') / 'red-1.png'} is the same file as {Path('red') / 'red-1 (copy).png'}" in err
    copy.rename(support / "blue" / "blue-9.png")
    assert call(support, "--model", backbone) == 0
    assert "is the same file as" in (err := capsys.readouterr().err)
    assert "of another class" in err


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_names_that_are_no_text_can_be_shown_and_written(support, photos, backbone, tmp_path, capsys):
    (photos / "red-0.png").rename(Path(os.fsdecode(os.fsencode(photos) + b"/caf\xe9\x1b[31m.png")))
    words = ["--output", tmp_path / "out.csv", "--sheet", tmp_path / "out.html"]
    assert call(support, photos, "--model", backbone, *words) == 0
    name = r"caf\udce9\x1b[31m.png"
    assert name in capsys.readouterr().out
    assert all(name in (tmp_path / file).read_text() for file in ("out.csv", "out.html"))


def test_only_an_ordinary_file_is_replaced(support, photos, backbone, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.csv")
    words = [support, photos, "--model", backbone, "--output"]
    assert "pipe.csv is no ordinary file" in failure(capsys, *words, tmp_path / "pipe.csv")
    (tmp_path / "link.csv").symlink_to("target.csv")
    assert call(*words, tmp_path / "link.csv") == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "target.csv").is_file()


def test_a_photo_in_a_format_that_pillow_lacks_names_the_package(support, photos, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # it cannot be imported
    (photos / "IMG_1.HEIC").write_bytes(b"something")
    line = failure(capsys, support, photos, "--model", "nowhere")  # before any work
    assert "IMG_1.HEIC: Pillow does not read HEIF by itself; pip install pillow-heif" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--compare", "--output", "a.csv"], "--compare looks at the examples alone"),
        (["--compare", "--reject_below", 0.5], "leave out QUERY_DIR, --reject_below, --output and --sheet"),
        (["--compare", "--adaptation", "full"], "--compare fine-tunes with LoRA"),
        (["--reject_below", 0.5], "--reject_below is for images to label: give QUERY_DIR"),
        (["--sheet", "missing/sheet.html"], "--sheet missing/sheet.html: there is no folder"),
        (["--steps", -1, "--adaptation", "lora"], "steps must be at least 0"),
        (["--steps", 10], "--steps, --learning_rate and --no-augment are for fine-tuning: add --adaptation"),
        (["--learning_rate", 0.1], "--steps, --learning_rate and --no-augment are for fine-tuning"),
        (["--no-augment"], "--steps, --learning_rate and --no-augment are for fine-tuning"),
        (["--revision", "v1"], "is a folder, which has no revision 'v1'"),
        (["--seed", -1], "--seed must be at least 0"),
        (["--sheet", "sheet.png"], "the page is HTML"),
    ],
)
def test_arguments_that_do_not_go_together_are_named(support, backbone, capsys, words, message):
    assert message in failure(capsys, support, "--model", backbone, *words)


@pytest.mark.parametrize("limit", [-0.1, 50])
def test_a_limit_that_is_no_probability_is_named(support, photos, capsys, limit):
    assert "--reject_below must be a probability" in failure(capsys, support, photos, "--reject_below", limit)


def test_too_few_examples_to_compare_are_noticed_before_any_work(support, capsys):
    for path in support.glob("*/*-1.png"):
        path.unlink()
    assert "two classes with two images each" in failure(capsys, support, "--model", "nowhere", "--compare")


def test_a_file_that_could_not_be_written_is_noticed_before_any_work(support, photos, capsys, tmp_path):
    output = tmp_path / "missing" / "answers.csv"
    assert "there is no folder" in failure(capsys, support, photos, "--model", "nowhere", "--output", output)


def test_a_batch_size_below_one_is_an_error(support, photos, backbone, capsys):
    assert "--batch_size must be at least 1" in failure(capsys, support, photos, "--model", backbone, "--batch_size", 0)


def test_a_model_that_cannot_be_had_is_one_line(support, photos, capsys):
    line = failure(capsys, support, photos, "--model", "someone/unknown-model")
    assert "cannot load backbone 'someone/unknown-model'" in line


def test_python_runs_it_as_a_module():
    ended = subprocess.run(
        [sys.executable, "-m", "smat_peft.classify", "--help"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "python -m smat_peft.classify examples/ photos/" in ended.stdout


def test_a_class_that_is_called_as_a_rejection_answers_is_refused(support, photos, backbone, capsys):
    (support / "red").rename(support / "none of these")
    found = failure(capsys, support, photos, "--model", backbone, "--reject_below", 0.5)
    assert "a class is called 'none of these', as --reject_below answers" in found


def test_an_interrupt_is_one_line(support, photos, backbone, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(FewShotClassifier, "fit", interrupted)
    assert call(support, photos, "--model", backbone) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "stopped"


@pytest.mark.parametrize(("option", "suffix"), [("--output", ".csv"), ("--sheet", ".html")])
def test_a_file_that_cannot_be_written_is_one_clear_error(support, photos, backbone, capsys, option, suffix):
    assert call(support, photos, "--model", backbone, option, f"/proc/answers{suffix}") == 2
    assert re.match(rf"error: .*/proc/answers{suffix}\b", capsys.readouterr().err)


def test_a_file_that_may_not_be_looked_at_is_one_clear_error(support, photos, tmp_path, monkeypatch, capsys):
    stat, locked = Path.stat, tmp_path / "locked"

    def refuse(path, **settings):  # what who is not root sees of a folder of another's
        if locked in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied")
        return stat(path, **settings)

    monkeypatch.setattr(Path, "stat", refuse)
    locked.mkdir()
    words = [support, photos, "--model", "nowhere", "--output"]
    assert failure(capsys, *words, locked / "a.csv").endswith("a.csv: Permission denied")
    monkeypatch.setattr(os, "access", lambda folder, mode: folder != tmp_path)
    assert failure(capsys, *words, tmp_path / "a.csv").endswith(f"folder {tmp_path} cannot be written to")


def test_output_that_nobody_reads_is_no_error_and_files_are_written(support, photos, backbone, tmp_path):
    words = [support, photos, "--model", backbone, "--output", tmp_path / "out.csv"]
    started = subprocess.Popen(
        [sys.executable, "-m", "smat_peft.classify", *map(str, words)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    started.stdout.close()  # as `head` does
    assert started.communicate()[1] == ""
    assert started.returncode == 141
    assert (tmp_path / "out.csv").is_file()
