"""``metrics.jsonl``: append-only, cut back to the checkpoint on a resumption."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from disks import full_after, read_only
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sn_imagenet.runs import MetricsLog, RunDirectory, RunError, provenance

# TensorBoard's writer thread ends where the disk is full.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def rows(directory: RunDirectory) -> list[Any]:
    return [json.loads(line) for line in directory.metrics.read_text().splitlines()]


def write(log: MetricsLog, *steps: int) -> None:
    for step in steps:
        log.write({"step": step}, {"train/loss": 1 / step}, step)


def test_rows_are_whole_lines_at_once(directory: RunDirectory) -> None:
    log = MetricsLog(directory)
    for step in (1, 2, 3):
        write(log, step)
        assert rows(directory)[-1] == {"step": step}
        assert log.bytes_written == directory.metrics.stat().st_size
    log.close()
    board = EventAccumulator(str(directory.path / "tensorboard"))
    board.Reload()
    events = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert events == [(step, pytest.approx(1 / step)) for step in (1, 2, 3)]


def test_a_resumed_run_writes_again_what_came_after_its_checkpoint(
    directory: RunDirectory,
) -> None:
    log = MetricsLog(directory)
    write(log, 1, 2)
    at_checkpoint = log.bytes_written
    write(log, 3, 4)
    log.close()
    resumed = MetricsLog(directory, at_checkpoint, step=2)
    write(resumed, 3)
    resumed.close()
    assert rows(directory) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_run_from_the_start_forgets_an_earlier_one(directory: RunDirectory) -> None:
    log = MetricsLog(directory)
    write(log, 1, 2)
    log.close()
    log = MetricsLog(directory)
    assert log.bytes_written == 0
    write(log, 1)
    log.close()
    assert rows(directory) == [{"step": 1}]


@pytest.mark.parametrize("left", [0, 15])
def test_lost_rows_leave_no_hole(directory: RunDirectory, left: int) -> None:
    """The file was removed, or a crash of the machine lost its end."""
    log = MetricsLog(directory)
    write(log, *range(1, 10))
    at_checkpoint = log.bytes_written
    log.close()
    kept = directory.metrics.read_bytes()[:left]
    directory.metrics.write_bytes(kept)
    log = MetricsLog(directory, at_checkpoint, step=9)
    write(log, 10)
    log.close()
    content = directory.metrics.read_bytes()
    assert b"\0" not in content
    assert rows(directory) == [*({"step": 1} for _ in range(left // 12)), {"step": 10}]


def test_a_full_disk_is_one_clear_error(directory: RunDirectory) -> None:
    log = MetricsLog(directory)
    with full_after(5000):
        with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl: File too large"):
            write(log, *range(1, 10_000))
        log.close()  # raises nothing that would hide the error
    whole = directory.metrics.read_bytes().rsplit(b"\n", 1)[0]
    assert [json.loads(line)["step"] for line in whole.splitlines()][:2] == [1, 2]


def test_a_read_only_folder(open_directory: RunDirectory) -> None:
    with (
        read_only(open_directory.path),
        pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl: Permission denied"),
    ):
        MetricsLog(open_directory)


def test_provenance_names_code_versions_and_hardware() -> None:
    found = provenance(torch.device("cpu"))
    json.dumps(found, allow_nan=False)
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert {"python", "torchvision", "timm", "numpy"} <= found["versions"].keys()
    assert found["hardware"]["device"] == "cpu"
    revision = found["git_revision"]
    assert revision is None or len(revision) == 40
    assert (found["git_dirty"] is None) == (revision is None)
