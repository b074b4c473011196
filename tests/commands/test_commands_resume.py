"""The same command again: after a kill, a damaged checkpoint, the end, another config."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from command_line import (
    CELL,
    ROOT,
    SMALL,
    Done,
    command,
    environment,
    forked,
    metrics,
    refused,
    result,
    succeeded,
    train,
    train_forked,
    train_killed,
    without_timings,
)
from conftest import CELL_ARGUMENTS, Once
from run_files import first_evaluations
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow  # a whole training first

RUN = CELL / "sn/8x4/seed0"


def _wait_for(condition: object, process: subprocess.Popen[bytes]) -> None:
    assert callable(condition)
    while not condition():
        assert process.poll() is None, "the run ended before it could be disturbed"
        time.sleep(0.01)


def _start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command("train.py", *arguments),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture(scope="session")
def killed(once: Once, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with the run of ``cell``, killed in its third epoch."""

    said = tmp_path_factory.mktemp("killed")

    def make(runs: Path) -> Done:
        # Step 105 is in the third epoch, which ends with step 129.
        last = runs / RUN / "last.pt"
        arguments = (*CELL_ARGUMENTS, f"runs_dir={runs}")
        return train_killed(*arguments, folder=said, step=105, last=last, epoch=2)

    runs, done = once("killed", make)
    assert done.code == -9
    return runs


def _same_as_undisturbed(run_dir: Path, undisturbed: Path) -> None:
    ours, theirs = (torch.load(d / "final.pt")["model"] for d in (run_dir, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert without_timings(metrics(run_dir)) == without_timings(metrics(undisturbed))
    assert first_evaluations(result(run_dir)) == first_evaluations(result(undisturbed))
    assert result(run_dir)["importance_weights"] == result(undisturbed)["importance_weights"]
    assert result(run_dir)["training"]["samples"] == result(undisturbed)["training"]["samples"]


def test_killed_run_goes_on_to_the_very_same_result(
    killed: Path, cell: tuple[Path, Done], tmp_path: Path
) -> None:
    runs = shutil.copytree(killed, tmp_path / "runs")
    assert torch.load(runs / RUN / "last.pt")["epoch"] == 2
    done = succeeded(train(*CELL_ARGUMENTS, f"runs_dir={runs}"))
    assert "Resuming from epoch 2, step 86" in done.out
    assert done.err == ""
    _same_as_undisturbed(runs / RUN, cell[0])
    board = EventAccumulator(str(runs / RUN / "tensorboard"))
    board.Reload()
    steps = [event.step for event in board.Scalars("train/loss")]
    assert steps == [row["step"] for row in metrics(runs / RUN) if row["kind"] == "train"]


def test_damaged_checkpoint_falls_back_to_the_one_before(
    killed: Path, cell: tuple[Path, Done], tmp_path: Path
) -> None:
    runs = shutil.copytree(killed, tmp_path / "runs")
    last = runs / RUN / "last.pt"
    last.write_bytes(last.read_bytes()[:50_000])
    done = succeeded(train(*CELL_ARGUMENTS, f"runs_dir={runs}"))
    assert "warning: " in done.said
    assert f"{last} is not a readable checkpoint" in done.said
    assert "resuming from the previous checkpoint" in done.said
    assert "Resuming from epoch 1" in done.out
    _same_as_undisturbed(runs / RUN, cell[0])


def test_damaged_checkpoints_are_both_named(killed: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(killed, tmp_path / "runs")
    paths = [runs / RUN / name for name in ("last.pt", "previous.pt")]
    for path in paths:
        path.write_bytes(path.read_bytes()[:50_000])
    before = [path.read_bytes() for path in paths]
    done = train_forked(*CELL_ARGUMENTS, f"runs_dir={runs}", folder=tmp_path / "said")
    refused(done, "no checkpoint", *map(str, paths))
    assert [path.read_bytes() for path in paths] == before


def test_finished_run_says_so_whatever_the_machine(cell: tuple[Path, Done], tmp_path: Path) -> None:
    run_dir, _ = cell
    before = {p.name: p.stat().st_mtime_ns for p in run_dir.glob("*.pt")}
    machine = ("trainer.eval_batch_size=7", "data.workers=1", "trainer.replicas_per_pass=2")
    arguments = (*CELL_ARGUMENTS, *machine, f"run_dir={run_dir}")
    done = succeeded(train_forked(*arguments, folder=tmp_path / "said"))
    assert f"{run_dir}: already finished, nothing to do" in done.out
    assert {p.name: p.stat().st_mtime_ns for p in run_dir.glob("*.pt")} == before


def test_other_config_in_the_same_directory_is_refused(
    cell: tuple[Path, Done], tmp_path: Path
) -> None:
    run_dir, _ = cell
    before = (run_dir / "result.json").read_bytes()
    other = ("trainer.epochs=5", "seed=1", f"run_dir={run_dir}")
    done = train_forked(*CELL_ARGUMENTS, *other, folder=tmp_path / "said")
    refused(done, str(run_dir), "trainer.epochs: 4 (there) -> 5 (now)", "seed: 0 (there) -> 1")
    assert "log_every" not in done.err
    assert (run_dir / "result.json").read_bytes() == before


def test_interrupted_run_goes_on_on_another_machine(killed: Path, tmp_path: Path) -> None:
    """Other workers, passes and evaluation batches are no other experiment; without a compiler it
    goes on with other passes, which is told and recorded.
    """
    runs = shutil.copytree(killed, tmp_path / "runs")
    machine = ("trainer.eval_batch_size=100", "data.workers=1", "trainer.replicas_per_pass=4")
    arguments = (*CELL_ARGUMENTS, *machine, "evaluate=false", f"runs_dir={runs}")
    done = succeeded(train(*arguments, CXX="false"))
    assert "Resuming from epoch 2, step 86" in done.out
    assert "2 forward passes" in done.out
    assert done.err.count("normalization uses PyTorch's own operators") == 1
    assert result(runs / RUN)["training"]["norm_backends"] == ["cpp", "native"]
    assert result(runs / RUN)["status"] == "finished"
    assert result(runs / RUN)["evaluations"] == []


def test_max_steps_ends_with_its_checkpoint(tmp_path: Path) -> None:
    arguments = ("norm=gn", "batch=8x4", "trainer.max_steps=50", "trainer.log_every=20")
    run_dir = tmp_path / "run"
    succeeded(train_forked(*SMALL, *arguments, f"run_dir={run_dir}", folder=tmp_path / "said"))
    last, final = (torch.load(run_dir / name) for name in ("last.pt", "final.pt"))
    assert (last["epoch"], last["step"], last["step_in_epoch"]) == (1, 50, 7)
    assert all(torch.equal(last["model"][key], final["model"][key]) for key in final["model"])
    found = result(run_dir)
    assert found["status"] == "finished"
    assert found["training"]["steps"] == 50
    assert found["importance_weights"] is None
    assert set(first_evaluations(found)) == {"sample"}  # GN stores no statistics
    assert not list(run_dir.glob("fig*"))
    stopped = [d for d in found["departures"] if d["item"] == "stopped after steps"]
    assert stopped == [{"item": "stopped after steps", "paper": "None", "ours": "50"}]


def test_directory_in_use_is_refused(tmp_path: Path) -> None:
    arguments = (*SMALL, "norm=bn", "batch=8x2", f"run_dir={tmp_path / 'run'}")
    process = _start(*arguments)
    try:
        _wait_for(lambda: (tmp_path / "run" / "config.yaml").exists(), process)
        parts = (f"in use by process {process.pid} on", str(tmp_path / "run"))
        refused(train(*arguments), *parts, code=69)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_diverged_run_is_a_result(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    wild = ("norm=bn", "batch=8x2", "trainer.epochs=1", "protocol.base_lr=1e6")
    arguments = (*SMALL, *wild, f"runs_dir={runs}")
    done = succeeded(train_forked(*arguments, folder=tmp_path / "said"))
    run_dir = runs / CELL / "bn/8x2/seed0"
    found = result(run_dir)
    assert found["status"] == "diverged"
    step, loss = found["diverged"]["step"], found["diverged"]["loss"]
    assert f"diverged at step {step} (epoch 1): the loss is {loss}" in done.out
    assert loss in ("nan", "inf")
    assert found["training"]["steps"] == step - 1
    assert found["evaluations"] == []
    assert done.err == ""
    # What led there is kept: the metrics of every step, and the weights if they are any.
    assert metrics(run_dir)[-1]["step"] == step - 1
    if (run_dir / "last.pt").exists():
        last = torch.load(run_dir / "last.pt")
        assert last["step"] == step - 1
        assert all(weight.isfinite().all() for weight in last["model"].values())

    # An update that breaks the weights is no end of a training, though each loss was finite.
    broken = ("norm=bn", "batch=8x2", "trainer.max_steps=1", "protocol.base_lr=4.8e39")
    broken = (*SMALL, *broken, "protocol.weight_decay=1e3", f"runs_dir={tmp_path / 'broken'}")
    said = succeeded(train_forked(*broken, folder=tmp_path / "broken said")).out
    ended = result(tmp_path / "broken" / CELL / "bn/8x2/seed0")
    assert (ended["status"], ended["evaluations"]) == ("diverged", [])
    assert ended["diverged"]["step"] == 1 and ended["diverged"]["loss"] not in ("nan", "inf")
    assert "diverged at step 1 (epoch 1): weights are not finite" in said

    # It is a result: the same command has nothing to do, and the table shows it.
    again = succeeded(train_forked(*arguments, folder=tmp_path / "again"))
    assert "already diverged, nothing to do" in again.out
    tables = ("scripts/make_tables.py", "--runs", runs, "--out", tmp_path)
    table = succeeded(forked(*tables, folder=tmp_path / "table"))
    row = next(line for line in table.out.splitlines() if line.startswith("| BN"))
    assert "diverged" in row
