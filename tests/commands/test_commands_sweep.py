"""``train.py -m norm=bn,sn batch=8x8,8x2``, by one process and by two of torchrun."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from command_line import CELL, SMALL, Done, metrics, result, run, succeeded, train_forked
from conftest import SWEPT
from run_files import first_evaluations

from sn_imagenet.reporting.render import half_up

Sweep = tuple[Path, Done]


def _lines(done: Done, pattern: str) -> list[str]:
    return [line for line in done.out.splitlines() if re.search(pattern, line)]


def _check(runs: Path, done: Done, processes: int) -> None:
    succeeded(done)
    for cell in SWEPT:
        found = result(runs / CELL / cell / "seed0")
        assert found["status"] == "finished"
        assert found["training"]["world_size"] == processes
        assert {e["seen"] for e in first_evaluations(found).values()} == {400}
        # BN and SN both under the moving average and the batch average.
        assert set(first_evaluations(found)) == {"moving_average", "batch_average"}
    # Only rank 0 speaks: each line once.
    assert len(_lines(done, "validation top-1")) == len(SWEPT)
    assert len(_lines(done, f"on {processes} process")) == len(SWEPT)
    assert len(_lines(done, r"\| batch average ")) == len(SWEPT)
    assert len(_lines(done, "/top1.md$")) == len(SWEPT)
    assert done.err == ""
    # Hydra's own folders stay out of sight, and the runs are what is left.
    assert {path.name for path in runs.iterdir()} - {".hydra"} == {"digits"}


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["bn", "sn"])
def test_calibration_in_training_changes_no_bit(
    norm: str, sweep_of_one: tuple[Path, Done], tmp_path: Path
) -> None:
    """The same cell once more, calibrated after its epoch: the running statistics are those of the
    training alone, and the calibrated validation is the batch average's.
    """
    run, other = tmp_path / "run", sweep_of_one[0] / CELL / norm / "8x8/seed0"
    cell = (f"norm={norm}", "batch=8x8", *SMALL, "trainer.epochs=1", "trainer.log_every=1")
    every = ("calibration.every=1", f"run_dir={run}")
    done = succeeded(train_forked(*cell, *every, folder=tmp_path / "said"))
    ours, theirs = (torch.load(path / "final.pt")["model"] for path in (run, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    row = metrics(run)[-1]
    average = first_evaluations(result(run))["batch_average"]
    assert row["calibrated"]["statistics"] == "batch_average"
    assert row["calibrated"]["top1_correct"] == average["top1_correct"]
    assert row["calibrated"]["calibration"] == average["calibration"]
    assert row["calibrated"]["seconds"] > 0
    assert "calibrated" not in metrics(other)[-1]
    top1 = average["top1"]
    assert re.search(
        rf"moving average statistics; {top1:.2f} .*, batch average statistics", done.out
    )


def test_one_process_sweeps(sweep_of_one: Sweep) -> None:
    runs, done = sweep_of_one
    _check(runs, done, 1)


@pytest.mark.slow
def test_two_processes_sweep_from_another_folder(sweep_of_two: Sweep) -> None:
    folder, done = sweep_of_two
    _check(folder / "runs", done, 2)
    assert list((folder / "cwd").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("cell", SWEPT)
def test_placements_agree(sweep_of_one: Sweep, sweep_of_two: Sweep, cell: str) -> None:
    one = sweep_of_one[0] / CELL / cell / "seed0"
    two = sweep_of_two[0] / "runs" / CELL / cell / "seed0"
    # Rounding decides which side of a ReLU's kink a value lies on: later steps drift apart. (The
    # replicas' own tests compare many steps, in float64.)
    rows = [[row for row in metrics(path) if row["kind"] == "train"] for path in (one, two)]
    assert len(rows[0]) == len(rows[1])
    for ours, theirs in zip(*rows, strict=True):
        tolerance = {1: 1e-6, 2: 1e-5, 3: 1e-3, 4: 1e-2}.get(ours["step"], 0.5)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=tolerance)
        assert (ours["lr"], ours["step"]) == (theirs["lr"], theirs["step"])
    results = [result(path) for path in (one, two)]
    assert results[0]["training"]["samples"] == results[1]["training"]["samples"]
    for name, evaluation in first_evaluations(results[0]).items():
        other = first_evaluations(results[1])[name]
        assert evaluation["seen"] == other["seen"]
        assert evaluation["calibration"] == other["calibration"]


@pytest.mark.slow
def test_sweep_fills_table_2(sweep_of_one: Sweep, tmp_path: Path) -> None:
    done = succeeded(run("scripts/make_tables.py", "--runs", sweep_of_one[0], "--out", tmp_path))
    for cell in SWEPT:
        found = result(sweep_of_one[0] / CELL / cell / "seed0")
        top1 = first_evaluations(found)[found["cell"]["test_statistics"]]["top1"]
        assert str(half_up(top1, 1)) in done.out
    assert {path.name for path in tmp_path.iterdir()} >= {"table2.md", "table2.tex", "table2.csv"}
    done = succeeded(run("scripts/make_figures.py", "--runs", sweep_of_one[0], "--out", tmp_path))
    assert {path.stem for path in tmp_path.glob("*.png")} >= {"fig3", "fig4"}
