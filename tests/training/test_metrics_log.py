"""The metrics of a run in ``metrics.jsonl`` and TensorBoard."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from disks import size_limit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sn_imagenet.runs import RunDirectory, RunError
from sn_imagenet.runs.scores import TOP1
from sn_imagenet.training.metrics_log import MetricsLog, unpack_rows
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


def test_rows_after_the_checkpoint_are_replaced_when_a_run_resumes(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    log = MetricsLog(directory, partial(TensorBoard, directory, 0, TOP1))
    at_checkpoint = log.state()
    for step in (1, 2, 3):
        log.write({"step": step}, {"train/loss": 1 / step}, step)
        at_checkpoint = log.state() if step == 2 else at_checkpoint
    log.sync()
    log.close()
    resumed = MetricsLog(
        directory, partial(TensorBoard, directory, 2, TOP1), unpack_rows(at_checkpoint)
    )
    resumed.write({"step": 3, "again": True}, {"train/loss": 3.0}, 3)
    resumed.close()
    rows = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    assert rows == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    board = EventAccumulator(str(directory.tensorboard))
    board.Reload()
    events = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert events == [(1, 1.0), (2, 0.5), (3, 3.0)]
