"""An evaluation that keeps its records: cut, gone on with, grown by domains, and refused with other settings."""

import dataclasses

import pytest
import torch
from PIL import Image

from smat_peft import evaluate, load_domain
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.errors import CheckpointError
from smat_peft.evaluation.record_files import read_records
from tests.class_folders import write_classes
from tests.evaluation.small import undecided


@pytest.fixture
def run(make_domain, transform, tmp_path):
    """A function that evaluates one predictor over two domains and says which episodes it has seen."""
    domains = {"a": ("id", make_domain("a"), "all"), "b": ("test_ood", make_domain("b", seed=1), "all")}
    validation = FixedEpisodes([make_domain("v", seed=2)], "all", 2, transform=transform)

    def evaluation(names="ab", stop_at=None, folder=tmp_path, **changes):
        seen = []

        def predict(episode):
            if (episode.domain, episode.index) == stop_at:
                raise InterruptedError
            seen.append((episode.domain, episode.index))
            return 5 * torch.nn.functional.one_hot(episode.query_labels, episode.ways).float() + episode.index

        settings = {"transform": transform, "episodes": 4, "validation": validation, "progress": False}
        wanted = [domains[name] for name in names]
        return evaluate({"mine": predict}, wanted, output_dir=folder, **settings | changes), seen

    return evaluation


def equal(one, other):
    assert [dataclasses.asdict(record) for record in one.records] == [
        pytest.approx(dataclasses.asdict(record), abs=1e-6) for record in other.records
    ]
    assert one.temperatures == pytest.approx(other.temperatures)
    for key, value in one.calibration.items():
        assert value.after.bins == pytest.approx(other.calibration[key].after.bins, abs=1e-4)


@pytest.mark.parametrize("stop_at", [("a", 0), ("a", 2), ("b", 0), ("b", 3)])
def test_an_evaluation_that_was_cut_goes_on_at_the_first_episode_without_a_record(run, tmp_path, stop_at):
    whole, _ = run(folder=None)
    with pytest.raises(InterruptedError):
        run(stop_at=stop_at)
    found, seen = run()
    order = [(domain, index) for domain in "ab" for index in range(4)]
    assert seen == order[order.index(stop_at) :]
    equal(found, whole)
    equal(read_records(tmp_path), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["mine-prototype.parquet"]


def test_a_line_that_was_cut_is_measured_again_and_nothing_else(run, tmp_path):
    whole, _ = run(folder=None)
    with pytest.raises(InterruptedError):
        run(stop_at=("b", 1))
    (unfinished,) = tmp_path.iterdir()
    unfinished.write_bytes(unfinished.read_bytes()[:-40])
    with pytest.raises(InterruptedError):
        run(stop_at=("b", 2))
    found, seen = run()
    assert seen == [("b", 2), ("b", 3)]
    equal(found, whole)


def test_what_is_finished_is_not_measured_again(run):
    first, _ = run()
    again, seen = run()
    assert seen == []
    equal(again, first)


def test_a_cut_between_writing_the_records_and_taking_the_text_away_counts_nothing_twice(run, tmp_path):
    with pytest.raises(InterruptedError):
        run(stop_at=("b", 3))
    (unfinished,) = tmp_path.iterdir()
    text = unfinished.read_bytes()
    whole, _ = run("a")
    unfinished.write_bytes(text)
    found, seen = run()
    assert seen == [("b", 3)]
    assert len(found.records) == 8
    equal(found, run(folder=None)[0])
    assert whole.calibration["mine", "a"].before.bins[0].sum() == found.calibration["mine", "a"].before.bins[0].sum()


def test_domains_may_be_added_later(run, tmp_path):
    run("a")
    second, seen = run("b")
    assert {domain for domain, _ in seen if domain != "v"} == {"b"}
    assert list(second.domains) == ["b"]
    both, seen = run("ab")
    assert seen == []
    equal(both, run(folder=None)[0])
    equal(read_records(tmp_path).of_domains("b"), second)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 3}, "episodes 4, now 3"),
        ({"ways": 6}, "ways None, now 6"),
        ({"seed": 1}, "seed 0, now 1"),
        ({"settings": {"adapter": "other"}}, "adapter None, now 'other'"),
    ],
)
def test_records_of_other_settings_are_refused(run, tmp_path, finished, changes, message):
    if finished:
        run()
    else:
        with pytest.raises(InterruptedError):
            run(stop_at=("b", 0))
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=f"made with other settings .*{message}"):
        run(**changes)
    assert path.read_bytes() == before


def test_records_with_other_validation_episodes_are_refused(run, make_domain, transform):
    run("a")
    others = FixedEpisodes([make_domain("w")], "all", 2, ways=5, shots=1, queries=2, transform=transform, seed=0)
    for validation in (others, list(others)):
        with pytest.raises(CheckpointError, match=r"made with other settings .*validation"):
            run("b", validation=validation)


def test_a_domain_of_another_split_is_refused(run, make_domain, transform, tmp_path):
    run("a")
    with pytest.raises(CheckpointError, match="how episodes of a are drawn"):
        evaluate(
            {"mine": undecided},
            [("id", make_domain("a", classes=40), "test")],
            transform=transform,
            episodes=4,
            output_dir=tmp_path,
        )


def test_another_seed_of_training_has_a_file_of_its_own(run, tmp_path):
    run(training_seed=0)
    _, seen = run(training_seed=1)
    assert len(seen) == 2 + 8
    assert {record.seed for record in read_records(tmp_path).records} == {0, 1}


def test_a_predictor_that_joins_leaves_the_others_their_records(run, make_domain, transform, tmp_path):
    run("ab")
    domains = [("id", make_domain("a"), "all")]
    settings = {"transform": transform, "progress": False, "output_dir": tmp_path}
    validation = FixedEpisodes([make_domain("v", seed=2)], "all", 2, transform=transform)
    with pytest.raises(CheckpointError, match="episodes 4, now 3"):
        evaluate({"mine": undecided, "other": undecided}, domains, episodes=3, validation=validation, **settings)
    evaluate({"mine": undecided, "other": undecided}, domains, episodes=4, validation=validation, **settings)
    kept = read_records(tmp_path)
    assert {(record.predictor, record.domain) for record in kept.records} == {
        *(("mine", "a"), ("mine", "b"), ("other", "a")),
    }


def test_a_damaged_beginning_is_one_clear_error(run, tmp_path):
    with pytest.raises(InterruptedError):
        run(stop_at=("b", 0))
    (path,) = tmp_path.iterdir()
    path.write_text("not JSON\n")
    with pytest.raises(CheckpointError, match="is damaged; delete it"):
        run()


def test_records_of_other_images_or_other_pixels_are_refused(make_domain, transform, tmp_path):
    def measured(images=5, **changes):
        settings = {"transform": transform, "episodes": 1, "progress": False, "output_dir": tmp_path}
        return evaluate({"mine": undecided}, [("id", make_domain("a", images=images), "all")], **settings | changes)

    measured()
    with pytest.raises(CheckpointError, match="the images of a, or how they are made into pixels"):
        measured(images=6)
    with pytest.raises(CheckpointError, match="the images of a, or how they are made into pixels"):
        measured(transform=dataclasses.replace(transform, mean=(0.1, 0.1, 0.1)))
    measured()


def test_records_of_a_folder_whose_files_have_changed_are_refused(transform, tmp_path):
    write_classes(tmp_path / "birds", "abcde", 3, lambda *_: Image.new("RGB", (16, 16)))

    def measured():
        domain = load_domain(f"folder:{tmp_path / 'birds'}")
        settings = {"transform": transform, "episodes": 1, "progress": False, "output_dir": tmp_path / "records"}
        return evaluate(lambda pixels: pixels.flatten(1), [("id", domain, "all")], **settings)

    measured()
    Image.effect_noise((16, 16), 50).save(tmp_path / "birds" / "a" / "0.png")
    with pytest.raises(CheckpointError, match="the images of birds"):
        measured()
