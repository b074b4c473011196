"""Running the same command again: after a kill, with a damaged checkpoint, when finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import (
    MODEL_DIR,
    SMALL,
    Completed,
    check_ok,
    read_metrics,
    read_result,
    run_forked,
    train,
    train_forked,
    train_killed,
)
from conftest import RUN_ARGUMENTS
from run_files import first_evaluations

pytestmark = pytest.mark.slow  # needs a whole training run

RUN = MODEL_DIR / "sn/8x4/seed0"


def test_a_finished_run_reports_it_on_any_machine(
    base_run: tuple[Path, Completed], tmp_path: Path
) -> None:
    run_dir, _ = base_run
    before = {p.name: p.stat().st_mtime_ns for p in run_dir.glob("*.pt")}
    machine = ("trainer.eval_batch_size=7", "data.workers=1", "trainer.replicas_per_pass=2")
    arguments = (*RUN_ARGUMENTS, *machine, f"run_dir={run_dir}")
    done = check_ok(train_forked(*arguments, folder=tmp_path / "logs"))
    assert f"{run_dir}: already finished, nothing to do" in done.out
    assert {p.name: p.stat().st_mtime_ns for p in run_dir.glob("*.pt")} == before


def test_killed_run_resumes_on_another_machine(tmp_path: Path) -> None:
    """Other workers, passes and evaluation batches are the same experiment. Without a compiler,
    other normalization kernels are used, which is reported and recorded.
    """
    runs = tmp_path / "runs"
    arguments = (*RUN_ARGUMENTS, f"runs_dir={runs}")
    # Step 105 is in the third epoch, which ends with step 129.
    stop: dict[str, Any] = {"step": 105, "last": runs / RUN / "last.pt", "epoch": 2}
    assert train_killed(*arguments, folder=tmp_path / "killed", **stop).code == -9
    machine = ("trainer.eval_batch_size=100", "data.workers=1", "trainer.replicas_per_pass=4")
    done = check_ok(train(*arguments, *machine, "evaluate=false", CXX="false"))
    assert "Resuming from epoch 2, step 86" in done.out
    assert "forward passes per step: 2" in done.out
    assert done.err.count("normalization uses PyTorch's own operators") == 1
    assert read_result(runs / RUN)["training"]["norm_backends"] == ["cpp", "native"]
    assert read_result(runs / RUN)["status"] == "finished"
    assert read_result(runs / RUN)["evaluations"] == []


def test_max_steps_ends_with_its_checkpoint(tmp_path: Path) -> None:
    arguments = ("norm=gn", "batch=8x4", "trainer.max_steps=50", "trainer.log_every=20")
    run_dir = tmp_path / "run"
    check_ok(train_forked(*SMALL, *arguments, f"run_dir={run_dir}", folder=tmp_path / "logs"))
    last, final = (torch.load(run_dir / name) for name in ("last.pt", "final.pt"))
    assert (last["epoch"], last["step"], last["step_in_epoch"]) == (1, 50, 7)
    assert all(torch.equal(last["model"][key], final["model"][key]) for key in final["model"])
    result = read_result(run_dir)
    assert result["status"] == "finished"
    assert result["training"]["steps"] == 50
    assert result["importance_weights"] is None
    assert set(first_evaluations(result)) == {"sample"}  # GN stores no statistics
    assert not list(run_dir.glob("fig*"))
    stopped = [d for d in result["departures"] if d["item"] == "stopped after steps"]
    assert stopped == [{"item": "stopped after steps", "paper": "None", "ours": "50"}]


def test_diverged_run_is_a_result(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    wild = ("norm=bn", "batch=8x2", "trainer.epochs=1", "protocol.base_lr=1e6")
    arguments = (*SMALL, *wild, f"runs_dir={runs}")
    done = check_ok(train_forked(*arguments, folder=tmp_path / "logs"))
    run_dir = runs / MODEL_DIR / "bn/8x2/seed0"
    result = read_result(run_dir)
    assert result["status"] == "diverged"
    step, loss = result["diverged"]["step"], result["diverged"]["loss"]
    assert f"diverged at step {step} (epoch 1): the loss is {loss}" in done.out
    assert loss in ("nan", "inf")
    assert result["training"]["steps"] == step - 1
    assert result["evaluations"] == []
    assert done.err == ""
    assert read_metrics(run_dir)[-1]["step"] == step - 1  # the metrics of every step are kept

    # Non-finite weights after the last update are a divergence, though each loss was finite.
    broken = ("norm=bn", "batch=8x2", "trainer.max_steps=1", "protocol.base_lr=4.8e39")
    broken = (*SMALL, *broken, "protocol.weight_decay=1e3", f"runs_dir={tmp_path / 'broken'}")
    output = check_ok(train_forked(*broken, folder=tmp_path / "broken logs")).out
    ended = read_result(tmp_path / "broken" / MODEL_DIR / "bn/8x2/seed0")
    assert (ended["status"], ended["evaluations"]) == ("diverged", [])
    assert ended["diverged"]["step"] == 1 and ended["diverged"]["loss"] not in ("nan", "inf")
    assert "diverged at step 1 (epoch 1): weights are not finite" in output

    # Divergence is a result: the same command has nothing to do, and the table shows it.
    again = check_ok(train_forked(*arguments, folder=tmp_path / "again"))
    assert "already diverged, nothing to do" in again.out
    tables = ("scripts/make_tables.py", "--runs", runs, "--out", tmp_path)
    table = check_ok(run_forked(*tables, folder=tmp_path / "table"))
    row = next(line for line in table.out.splitlines() if line.startswith("| BN"))
    assert "diverged" in row
