"""Signals to a run and its data loader workers: the run saves its checkpoint."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from run_processes import children, finish, start, steps, wait_until

from sn_imagenet.runs import RunDirectory

WORKERS = ("data.workers=2", "trainer.epochs=1", "checkpoint.minutes=null")


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["training", "validation", "evaluation", "calibration"])
def test_a_signal_to_all_processes_of_a_run_saves_and_ends_it(tmp_path, pauses, phase):
    run = tmp_path / "run"
    files = {"validation": RunDirectory(run).last, "evaluation": RunDirectory(run).final}
    if phase == "training":
        pauses.slow_down()
    elif phase == "calibration":
        pauses.hold_calibration()
    else:
        pauses.hold(files[phase])
    process = start(run, *WORKERS, *pauses.OVERRIDES)
    reached = {"training": lambda: len(steps(run)) > 1, "calibration": pauses.is_calibrating}
    wait_until(reached.get(phase, lambda: files[phase].exists()))
    workers = children(process.pid)
    assert len(workers) >= 2
    for pid in [*workers, process.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    output, code = finish(process)
    assert code == os.EX_TEMPFAIL and "Interrupted" in output, output
    assert "DataLoader worker" not in output
    assert not (run / "lock.json").exists() and not (run / "result.json").exists()
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
