"""The metrics of a run in ``metrics.jsonl`` and TensorBoard."""

from __future__ import annotations

from pathlib import Path

import pytest
from disks import size_limit

from sn_imagenet.runs import RunDirectory, RunError
from sn_imagenet.tasks import prepare
from sn_imagenet.training.recorder import Recorder

# TensorBoard's writer thread ends when the disk is full.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def write(recorder: Recorder, steps: int) -> None:
    for step in range(1, steps):
        recorder.write({"step": step}, {"train/loss": 1 / step}, step)


def test_a_full_disk_is_one_clear_error(composed, tmp_path: Path) -> None:
    prepared = prepare(composed("data=digits", "model=resnet14_mini"))
    recorder = Recorder(prepared, RunDirectory(tmp_path), 0, 10_000, None)
    with size_limit(5000):
        with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl: File too large"):
            write(recorder, 10_000)
        recorder.close()  # must not raise: it would hide the error
