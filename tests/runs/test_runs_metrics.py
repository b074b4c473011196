"""``metrics.jsonl``: append-only, and truncated to the checkpoint when a run resumes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sn_imagenet.runs import MetricsFile, RunDirectory, decompress_rows
from sn_imagenet.runs.metrics import last_rows


def rows(directory: RunDirectory) -> list[Any]:
    return [json.loads(line) for line in directory.metrics.read_text().splitlines()]


def write(log: MetricsFile, *steps: int) -> None:
    for step in steps:
        log.write({"step": step})


def test_each_row_is_a_complete_line_at_once(directory: RunDirectory) -> None:
    log = MetricsFile(directory.metrics)
    for step in (1, 2, 3):
        write(log, step)
        assert rows(directory)[-1] == {"step": step}
        assert decompress_rows(log.compressed_rows()) == directory.metrics.read_bytes()
    log.close()


def test_a_resumed_run_rewrites_the_rows_after_its_checkpoint(directory: RunDirectory) -> None:
    log = MetricsFile(directory.metrics)
    write(log, 1, 2)
    at_checkpoint = decompress_rows(log.compressed_rows())
    write(log, 3, 4)
    log.close()
    resumed = MetricsFile(directory.metrics, at_checkpoint)
    assert resumed.damage == ""
    write(resumed, 3)
    assert decompress_rows(resumed.compressed_rows()) == directory.metrics.read_bytes()
    resumed.close()
    assert rows(directory) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_new_run_removes_the_rows_of_an_earlier_one(directory: RunDirectory) -> None:
    log = MetricsFile(directory.metrics)
    write(log, 1, 2)
    log.close()
    log = MetricsFile(directory.metrics)
    assert log.damage == ""
    write(log, 1)
    log.close()
    assert rows(directory) == [{"step": 1}]


DAMAGE = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:25]),
    "emptied": lambda file: file.write_bytes(b""),
    "garbage first": lambda file: file.write_bytes(b"\0\xff\n" + file.read_bytes()),
    "a line less": lambda file: file.write_bytes(file.read_bytes()[12:]),
    "removed": lambda file: file.unlink(),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_reported_and_repaired(directory: RunDirectory, damage: str) -> None:
    log = MetricsFile(directory.metrics)
    write(log, *range(1, 10))
    at_checkpoint, whole = log.compressed_rows(), directory.metrics.read_bytes()
    write(log, 10)
    log.close()
    DAMAGE[damage](directory.metrics)
    log = MetricsFile(directory.metrics, decompress_rows(at_checkpoint))
    assert log.damage == ("was missing" if damage == "removed" else "was damaged")
    write(log, 10)
    log.close()
    assert directory.metrics.read_bytes() == whole + b'{"step": 10}\n'


def test_invalid_compressed_rows(directory: RunDirectory) -> None:
    compressed = MetricsFile(directory.metrics).compressed_rows()
    for other in (b"", b"text", compressed[:-3]):
        with pytest.raises(ValueError, match="its metrics cannot be decompressed"):
            decompress_rows(other)


def test_the_last_rows_are_found_far_from_the_end_and_past_a_cut_off_line(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert last_rows(metrics) == (None, None, None)
    epoch = json.dumps({"kind": "epoch", "epoch": 1, "val": {"top1": 5.0}, "pad": "x" * 5000})
    rows = [json.dumps({"kind": "train", "step": step, "pad": "y" * 80}) for step in range(9000)]
    metrics.write_text("\n".join([epoch, *rows, '{"kind": "train", "st']))
    train, last_epoch, _ = last_rows(metrics)
    assert train is not None and last_epoch is not None
    assert train["step"] == 8999 and last_epoch["epoch"] == 1


def test_names_that_are_not_utf8_are_read_again(directory: RunDirectory) -> None:
    log = MetricsFile(directory.metrics)
    log.write({"kind": "train", "step": 1, "file": "caf\udce9.jpg"})
    log.close()
    assert last_rows(directory.metrics).train == {
        "kind": "train",
        "step": 1,
        "file": "caf\\xe9.jpg",
    }
