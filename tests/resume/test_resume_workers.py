"""A run that is told to stop together with its loader's workers saves and goes on."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from run_processes import children, finish, start, steps, wait_until

from sn_imagenet.runs.files import FINAL, LAST

WORKERS = ("data.workers=2", "trainer.epochs=1", "checkpoint.minutes=null")


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["training", "validation", "evaluation", "calibration"])
def test_a_signal_to_all_processes_of_a_run_saves_and_ends_it(tmp_path, pauses, phase):
    run = tmp_path / "run"
    signs = {"validation": run / LAST, "evaluation": run / FINAL}
    if phase == "training":
        pauses.slow()
    elif phase == "calibration":
        pauses.hold_calibration()
    else:
        pauses.hold(signs[phase])
    process = start(run, *WORKERS, *pauses.OVERRIDES)
    came = {
        "training": lambda: len(steps(run)) > 1,
        "calibration": pauses.calibrating,
    }
    wait_until(came.get(phase, lambda: signs[phase].exists()))
    workers = children(process.pid)
    assert len(workers) >= 2
    for pid in [*workers, process.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    output, code = finish(process)
    assert code == os.EX_TEMPFAIL and "Interrupted" in output, output
    assert "DataLoader worker" not in output
    assert not (run / "lock.json").exists() and not (run / "result.json").exists()
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.slow
def test_torchrun_passes_a_signal_on_to_the_workers_too(tmp_path, pauses):
    run = tmp_path / "run"
    pauses.slow()
    process = start(run, *WORKERS, *pauses.OVERRIDES, processes=2)
    wait_until(lambda: len(steps(run)) > 1)
    process.terminate()
    output, _ = finish(process)
    assert output.count("Interrupted: checkpoint saved at step") == 1, output
    assert "DataLoader worker" not in output
    assert (run / "last.pt").exists() and not (run / "result.json").exists()
