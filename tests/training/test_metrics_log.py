"""The metrics of a run in ``metrics.jsonl`` and TensorBoard."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from disks import size_limit

from sn_imagenet.runs import RunDirectory, RunError
from sn_imagenet.runs.scores import TOP1
from sn_imagenet.training.metrics_log import MetricsLog
from sn_imagenet.training.trackers import TensorBoard

# TensorBoard's writer thread ends when the disk is full.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def write(log: MetricsLog, steps: int) -> None:
    for step in range(1, steps):
        log.write({"step": step}, {"train/loss": 1 / step}, step)


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    log = MetricsLog(directory, partial(TensorBoard, directory, 0, TOP1))
    with size_limit(5000):
        with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl: File too large"):
            write(log, 10_000)
        log.close()  # must not raise: it would hide the error
