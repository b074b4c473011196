"""``train.py -m norm=bn,sn batch=8x8,8x2`` in one process and in two processes of torchrun."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from command_line import (
    MODEL_DIR,
    SMALL,
    Completed,
    check_ok,
    read_metrics,
    read_result,
    train_forked,
)
from conftest import SWEPT
from run_files import first_evaluations

Sweep = tuple[Path, Completed]


def _lines(done: Completed, pattern: str) -> list[str]:
    return [line for line in done.out.splitlines() if re.search(pattern, line)]


def _check(runs: Path, done: Completed, processes: int) -> None:
    check_ok(done)
    for name in SWEPT:
        result = read_result(runs / MODEL_DIR / name / "seed0")
        assert result["status"] == "finished"
        assert result["training"]["world_size"] == processes
        assert {e["seen"] for e in first_evaluations(result).values()} == {400}
        # BN and SN are evaluated with both the moving average and the batch average.
        assert set(first_evaluations(result)) == {"moving_average", "batch_average"}
    # Only rank 0 prints, so each line appears once.
    assert len(_lines(done, "validation top-1")) == len(SWEPT)
    assert len(_lines(done, f"on {processes} process")) == len(SWEPT)
    assert len(_lines(done, r"\| batch average ")) == len(SWEPT)
    assert len(_lines(done, "/top1.md$")) == len(SWEPT)
    assert done.err == ""
    # Hydra's folders are hidden; only the runs remain.
    assert {path.name for path in runs.iterdir()} - {".hydra"} == {"digits"}


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["bn", "sn"])
def test_calibration_in_training_changes_no_weights(
    norm: str, sweep_of_one: tuple[Path, Completed], tmp_path: Path
) -> None:
    """The same run with calibration after its epoch: running statistics are those of training
    alone, and the calibrated validation equals the batch average's.
    """
    run, other = tmp_path / "run", sweep_of_one[0] / MODEL_DIR / norm / "8x8/seed0"
    arguments = (f"norm={norm}", "batch=8x8", *SMALL, "trainer.epochs=1", "trainer.log_every=1")
    every = ("calibration.every=1", f"run_dir={run}")
    done = check_ok(train_forked(*arguments, *every, folder=tmp_path / "logs"))
    ours, theirs = (torch.load(path / "final.pt")["model"] for path in (run, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    row = read_metrics(run)[-1]
    average = first_evaluations(read_result(run))["batch_average"]
    assert row["calibrated"]["statistics"] == "batch_average"
    assert row["calibrated"]["top1_correct"] == average["top1_correct"]
    assert row["calibrated"]["calibration"] == average["calibration"]
    assert row["calibrated"]["seconds"] > 0
    assert "calibrated" not in read_metrics(other)[-1]
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
