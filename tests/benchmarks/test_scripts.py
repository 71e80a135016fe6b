"""Each benchmark runs, here on next to nothing, and ends with its figures as JSON."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import adapt
import episodes
import fits
import interpolate
import memory
import merging
import meta_step
import processes
import scaling
import size
from measure import Peak, in_own_process
from tests.small_models import save_demo_adapter
from workloads import copy_state_, make_baseline, make_episodes, make_trainer, vit_shapes

QUICK = ["--threads", "1", "--device", "cpu", "--rounds", "1"]
TIMED = [*QUICK, "--warmup", "1"]
MODEL = ["--model", "demo-vit", "--layers", "1", "--ways", "2", "--shots", "1", "--queries", "1", "--experts", "4"]
KEYS = {"name", "unit", "ours", "baseline", "ratio", "ratio_is", "spread", "settings", "versions", "device"}

Run = Callable[[Callable[[Sequence[str]], None], Sequence[str]], list[dict[str, Any]]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> list[dict[str, Any]]:
        main(argv)
        found = json.loads(capfd.readouterr().out.splitlines()[-1])
        rows = found if isinstance(found, list) else [found]
        for row in rows:
            assert row.keys() == KEYS
            assert min(row["ours"], row["baseline"]) > 0
            assert row["spread"] >= 0
            assert row["device"].startswith("CPU")
        return rows

    return run


def names(rows: list[dict[str, Any]]) -> set[str]:
    return {row["name"] for row in rows}


def test_interpolation_is_measured_eager_compiled_and_with_structured_gates(run: Run) -> None:
    rows = run(interpolate.main, [*TIMED, "--params", "2e4", "--experts", "4"])
    for mode in ("eager", "compiled", "structured"):
        assert f"{mode}: an update" in names(rows)
        assert f"{mode}: bare sigmoid / forward of one merge" in names(rows)
    assert rows[0]["settings"]["seconds_to_compile"] > 0
    assert all(row["ratio"] > 0 for row in rows)


def test_shapes_are_those_of_a_vit_small_scaled() -> None:
    assert sum(shape.numel() for shape in vit_shapes(22e6)) == pytest.approx(22e6, rel=0.02)
    assert sum(shape.numel() for shape in vit_shapes(5e6)) == pytest.approx(5e6, rel=0.1)


def test_sides_that_compute_different_gradients_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "TRAIN_TEMPERATURE", 1.0)
    monkeypatch.setattr(merging.baseline, "gate_values", lambda logits, _: torch.sigmoid(logits))
    with pytest.raises(SystemExit, match="the two sides differ"):
        interpolate.main([*TIMED, "--params", "2e4", "--modes", "eager"])


def test_a_whole_update_is_measured_with_what_must_remain_of_it(run: Run) -> None:
    rows = run(meta_step.main, [*TIMED, *MODEL, "--no-torch_compile", "--memory_rounds", "0"])
    assert names(rows) == {"episode", "episode, of which passes that must remain"}
    assert rows[0]["settings"]["episodes_per_second"] == pytest.approx(1 / rows[0]["ours"])


def test_a_whole_update_is_measured_in_half_precision(run: Run) -> None:
    def main(argv: Sequence[str]) -> None:  # accelerate knows one precision a process
        in_own_process(meta_step.main, argv)

    rows = run(main, [*TIMED, *MODEL, "--dtype", "bf16", "--no-torch_compile", "--memory_rounds", "0"])
    assert rows[0]["settings"]["dtype"] == "bf16"


def test_sides_with_different_losses_are_not_measured() -> None:
    parser = meta_step.make_parser("")
    meta_step.add_model_arguments(parser, "demo-vit")
    arguments = parser.parse_args([*TIMED, *MODEL, "--no-torch_compile"])
    device = torch.device("cpu")
    trainer, baseline = make_trainer(arguments, device), make_baseline(arguments, device)
    copy_state_(baseline, trainer)
    tasks = make_episodes(arguments, device)
    meta_step.check_same_loss(trainer, baseline, tasks, 1e-5)
    baseline.target_sparsity = 0.5
    baseline.multipliers.data.fill_(1.0)
    with pytest.raises(SystemExit, match="the two sides differ"):
        meta_step.check_same_loss(trainer, baseline, tasks, 1e-5)


@pytest.mark.parametrize("structured", [False, True])
def test_memory_of_an_update_of_a_large_episode_and_on_disk(
    structured: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small_peak(call: Callable[[], object], device: torch.device) -> Peak:
        call()
        return Peak(above=1, total=2)

    monkeypatch.setattr(memory, "in_own_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(memory, "peak_memory", small_peak)  # a process that has run others' updates has no peak of one
    large = ["--large_ways", "5", "--large_shots", "2", "--max_batch_size", "4"]
    chosen = ["--structured"] if structured else []
    rows = run(memory.main, [*QUICK, *MODEL, *large, *chosen, "--no-torch_compile"])
    adapter = next(row for row in rows if row["name"] == "adapter")
    assert (adapter["ratio"] < 0.5) == structured
    assert any("10 support images in chunks / 4 whole" in name for name in names(rows))
    told = next(row for row in rows if "told beforehand" in row["name"])
    assert told["ours"] > 1e-4  # GB


def test_what_fits_is_told_for_each_backbone_without_making_its_experts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fits, "BACKBONES", {"tiny": (192, 2, 3, 384, 16), "large": (1024, 2, 16, 4096, 16)})
    monkeypatch.setattr(fits, "DEVICES", (1, 8))
    found = {}
    for count in ("1", "4"):
        fits.main(["--images", "20", "--processes", count])
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
        found[count] = {tuple(row[:3]): row[3:] for row in rows}
    assert len(found["1"]) == 2 * 2 * 2
    assert found["1"]["tiny", "16", "structured"][2] == "1 GB"
    assert found["1"]["large", "16", "element"][2] == "8 GB"
    sizes = {key: float(row[1].split()[0]) for key, row in found["1"].items()}
    assert sizes["large", "16", "element"] > sizes["large", "8", "element"] > sizes["large", "8", "structured"]
    assert found["4"]["large", "16", "structured"][1] < found["1"]["large", "16", "structured"][1]


def test_updates_are_timed_in_several_processes(run: Run) -> None:
    (row,) = run(processes.main, ["--rounds", "1", "--updates", "1", *MODEL])
    assert row["name"] == "an update: 2 processes / one"


def test_adapting_is_measured_against_the_plain_backbone(run: Run) -> None:
    rows = run(adapt.main, [*TIMED, *MODEL, "--no-torch_compile"])
    assert len(rows) == 3
    parameters = sum(p.numel() for p in adapt.make_backbone("demo-vit", 1).parameters())
    assert rows[0]["settings"]["megabytes_of_kept_gates"] == pytest.approx(4 * parameters * 2 / 1e6)


def test_sizes_are_of_whole_files_and_merging_is_timed(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(size, "EPISODES", 8)
    save_demo_adapter(tmp_path / "mine")
    small = ["--model", "demo-vit", "--layers", "1", "--experts", "4", "--no-torch_compile"]
    rows = run(size.main, [*TIMED, *small, "--adapter", str(tmp_path / "mine")])
    by_name = {row["name"]: row for row in rows}
    assert (
        by_name["mine: trainable"]["baseline"] == (tmp_path / "mine" / "adapter_model.safetensors").stat().st_size / 1e6
    )
    assert by_name["demo-vit: trainable"]["ratio"] > 3
    assert by_name["demo-vit: merging"]["unit"] == "s"


def test_loading_is_measured_on_images_that_the_benchmark_draws(run: Run) -> None:
    shape = ["--classes", "5", "--images", "4", "--width", "32", "--image_size", "16", "--shots", "1", "--queries", "1"]
    (row,) = run(episodes.main, [*TIMED, *shape, "--episodes", "2", "--workers", "1"])
    assert row["unit"] == "episodes/s"


def test_scaling_ends_with_a_picture(tmp_path: Path) -> None:
    points = ["--over_params", "1e4", "5e4", "--over_layers", "1", "2", "--over_experts", "2", "4", "--over_shots"]
    arguments = [*TIMED, *MODEL, *points, "1", "9", "--params", "1e4", "--no-torch_compile"]
    picture = tmp_path / "pictures" / "scaling.png"
    scaling.main([*arguments, "--picture", str(picture)])
    assert picture.stat().st_size > 10_000


def test_a_fit_finds_the_line_that_the_points_were_made_of() -> None:
    seconds = [[2 + 3 * x, 2 + 3 * x, 5 + 4 * x] for x in (1, 2, 4)]
    line = scaling.Line("", "", [1, 2, 4], {"ours": seconds})
    assert line.fit("ours") == pytest.approx((2, 3, 1))
    assert line.slopes("ours") == pytest.approx([3, 3, 4])
