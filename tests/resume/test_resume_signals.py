"""Runs that receive signals, lose a process or are killed save their state and resume."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from run_files import first_evaluations
from run_processes import children, finish, start, start_reading, steps, wait_until

LONG = ("trainer.epochs=500", "evaluate=false", "checkpoint.minutes=null")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_saves_the_step_and_ends_the_run_with_75(tmp_path, number):
    run = tmp_path / "run"
    process = start(run, *LONG)
    wait_until(lambda: len(steps(run)) > 3)
    process.send_signal(number)
    output, code = finish(process)
    assert code == os.EX_TEMPFAIL, output
    last = steps(run)[-1]
    assert f"Interrupted: checkpoint saved at step {last}" in output
    assert not (run / "lock.json").exists() and not (run / "result.json").exists()

    process = start(run, *LONG)
    wait_until(lambda: len(steps(run)) > last + 2)
    process.terminate()
    output, code = finish(process)
    assert f"Resuming from epoch {last // 21}, step {last}" in output
    assert steps(run) == list(range(1, len(steps(run)) + 1)), "each step once"


@pytest.mark.slow
def test_ranks_agree_on_the_step_if_one_receives_a_signal(tmp_path):
    run = tmp_path / "run"
    process = start(run, *LONG, processes=2)
    wait_until(lambda: len(steps(run)) > 3)
    # Only one rank, and not the one that writes.
    os.kill(children(process.pid)[1], signal.SIGUSR1)
    output, code = finish(process)
    assert code != 0 and output.count("Interrupted: checkpoint saved at step") == 1, output
    assert "has ended" not in output and "Connection" not in output
    assert not (run / "result.json").exists()
    # It resumes on another number of processes, which is recorded.
    short = [*LONG[1:], "trainer.epochs=500"]
    process = start(run, *short)
    last = len(steps(run))
    wait_until(lambda: len(steps(run)) > last + 2)
    process.terminate()
    output, _ = finish(process)
    assert f"step {last}" in output
    assert torch.load(run / "last.pt", weights_only=True)["world_sizes"] == [2, 1]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others_with_an_error_instead_of_a_hang(tmp_path, victim):
    run = tmp_path / "run"
    process = start(run, *LONG, processes=2)
    wait_until(lambda: len(steps(run)) > 3)
    os.kill(children(process.pid)[victim], signal.SIGKILL)
    output, code = finish(process)  # a collective waits for half an hour
    assert code == 1, output
    assert "another process of this run has ended" in output or "Interrupted" in output, output
    assert not (run / "result.json").exists()


@pytest.mark.slow
def test_the_remaining_rank_reports_the_interrupt_if_rank_0_is_killed(tmp_path, pauses):
    """torchrun signals it while it does not wait for another rank and has noticed nothing."""
    run = tmp_path / "run"
    pauses.hold()
    process = start(run, "trainer.epochs=1", *pauses.OVERRIDES, processes=2)
    wait_until(lambda: (run / "last.pt").exists())  # both are validating
    os.kill(children(process.pid)[0], signal.SIGKILL)
    output, code = finish(process)
    assert code == 1 and output.count("Interrupted") == 1, output
    assert "has ended" not in output, output


@pytest.mark.slow
def test_torchrun_restarts_a_killed_rank_and_the_result_is_the_same(tmp_path, pauses):
    short = ("trainer.epochs=5", "evaluate=false", "checkpoint.minutes=0.005", *pauses.OVERRIDES)
    uninterrupted, run = tmp_path / "uninterrupted", tmp_path / "run"
    output, code = finish(start(uninterrupted, *short, processes=2))
    assert code == 0, output
    pauses.slow_down()
    process = start(run, *short, processes=2, torchrun=("--max-restarts=2",))
    wait_until(lambda: (run / "last.pt").exists())
    os.kill(children(process.pid)[1], signal.SIGKILL)
    pauses.release()
    output, code = finish(process)
    assert code == 0, output
    models = [torch.load(path / "final.pt", weights_only=True) for path in (uninterrupted, run)]
    assert models[1]["training"]["world_sizes"] == [2, 2]
    for name, tensor in models[0]["model"].items():
        assert torch.equal(tensor, models[1]["model"][name]), name
    assert steps(run) == steps(uninterrupted) == list(range(1, 106))


@pytest.mark.slow
def test_only_one_of_several_simultaneous_starts_runs(tmp_path):
    run = tmp_path / "run"
    processes = [start(run, "trainer.max_steps=2", "evaluate=false") for _ in range(3)]
    ended = [finish(process) for process in processes]
    # One may also start after another has finished; it reports this and exits with 0.
    assert sum("8 replicas of 8 samples" in output for output, _ in ended) == 1
    for output, code in ended:
        assert code == (69 if "is in use by process" in output else 0), output
    assert json.loads((run / "result.json").read_text())["training"]["world_sizes"] == [1]
    assert not (run / "lock.json").exists()


@pytest.mark.slow
def test_a_run_that_reads_data_is_interrupted_at_once(tmp_path: Path):
    """No step can be lost while data are read."""
    process = start_reading(tmp_path / "run", *LONG, folder=tmp_path / "held")
    process.send_signal(signal.SIGTERM)
    output, code = finish(process)
    assert code == os.EX_TEMPFAIL and "no step is lost" in output, output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "signaled"), [("validation", (1,)), ("evaluation", (0,)), ("evaluation", ())]
)
def test_ranks_interrupted_while_evaluating_end_together(tmp_path, pauses, phase, signaled):
    """One of two ranks gets a signal, or torchrun, which forwards it to both."""
    run = tmp_path / "run"
    one_epoch = ("trainer.epochs=1", *pauses.OVERRIDES)
    if phase == "evaluation":
        pauses.hold(run / "final.pt")
    else:
        pauses.hold()
    process = start(run, *one_epoch, processes=2)
    marker = "last.pt" if phase == "validation" else "final.pt"
    wait_until(lambda: (run / marker).exists())
    workers = children(process.pid)
    for pid in [workers[rank] for rank in signaled] or [process.pid]:
        os.kill(pid, signal.SIGTERM)
    pauses.release()
    output, code = finish(process)
    assert code != 0 and not (run / "result.json").exists(), output
    assert output.count("Interrupted") == 1, output
    assert "has ended" not in output and "Traceback" not in output.split("torch/distributed/")[0], (
        output
    )
    if signaled:
        assert re.findall(r"exitcode +: (-?\d+)", output) == ["75"] * 2, output
    assert not (run / "lock.json").exists()
    if phase == "validation":
        return
    output, code = finish(start(run, *one_epoch, processes=2))
    assert code == 0 and "Resuming from epoch 1, step 21" in output, output
    result = json.loads((run / "result.json").read_text())
    assert {e["seen"] for e in first_evaluations(result).values()} == {400}
    assert steps(run) == list(range(1, 22))
