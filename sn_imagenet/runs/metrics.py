"""``metrics.jsonl``: the training process appends rows; others may read it at the same time."""

from __future__ import annotations

import errno
import json
import math
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from sn_imagenet.runs.directory import RunDirectory
from sn_imagenet.runs.files import RunError, advice, disk_errors, printable, write_atomically
from sn_imagenet.runs.reading import mapping, number, open_to_read, parse_json
from sn_imagenet.runs.scores import read_score

_ROW = 1 << 16  # bytes; more than a config


class MetricsFile:
    """Appends rows to a ``metrics.jsonl``.

    Args:
        path: the file.
        rows: the rows before the checkpoint that the run resumes from. Later rows in the file are
            removed, because the resumed run writes them again.

    ``damage``: what the existing file was if it did not begin with ``rows``, which then replaced
    it; else empty.

    Raises:
        RunError: the file cannot be written (a full or read-only disk).
    """

    def __init__(self, path: Path, rows: bytes = b"") -> None:
        self._path = path
        self._rows = bytearray(rows)
        with disk_errors(path):
            self.damage = repair(path, rows)
            self._file = open(path, "ab")  # noqa: SIM115 - closed by close()
            self._file.truncate(len(rows))

    def compressed_rows(self) -> bytes:
        """All rows so far, to be saved in a checkpoint: some MB, compressed to about a quarter."""
        return zlib.compress(self._rows)

    def write(self, row: dict[str, Any]) -> None:
        """Append ``row``.

        Raises:
            RunError: the disk is full or fails.
        """
        line = json.dumps(printable(row)).encode() + b"\n"
        with disk_errors(self._path):
            self._file.write(line)
            self._file.flush()
        self._rows += line

    def sync(self) -> None:
        """Flush the rows to the disk, so that a checkpoint never holds more rows than the file.

        Raises:
            RunError: the disk is full or fails.
        """
        with disk_errors(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file. Errors are ignored: each row was flushed when written, and an error
        here (such as a full disk) must not hide the one that ended the run.
        """
        with suppress(OSError):
            self._file.close()


def decompress_rows(compressed: bytes) -> bytes:
    """The inverse of :meth:`MetricsFile.compressed_rows`.

    Raises:
        ValueError: ``compressed`` is something else.
    """
    try:
        return zlib.decompress(compressed)
    except zlib.error as error:
        raise ValueError(f"its metrics cannot be decompressed: {error}") from error


class LastRows(NamedTuple):
    """The last row of each kind in a ``metrics.jsonl``, None if there is none: ``train``, the end
    of an ``epoch``, and a ``validation`` within one."""

    train: dict[str, Any] | None = None
    epoch: dict[str, Any] | None = None
    validation: dict[str, Any] | None = None


def last_rows(path: Path) -> LastRows:
    """The last rows of a ``metrics.jsonl``. A row that is still being written is skipped.

    Raises:
        RunError: a row that was read is malformed.
    """
    try:
        with open_to_read(path) as file:
            return _last_row_per_kind(file.read().split(b"\n")[:-1])
    except OSError:
        return LastRows()
    except (RunError, KeyError, TypeError, AttributeError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(f"{path}: malformed row: {reason}; {advice(path)}") from error


def require_own_rows(directory: RunDirectory, config: dict[str, Any]) -> None:
    """Require that ``metrics.jsonl`` is of the run with ``config``, if it says whose it is: its
    first row holds the experiment. Those of earlier versions do not say.

    Raises:
        RunError: it was copied from another run.
    """
    try:
        with open_to_read(directory.metrics) as file:
            first = parse_json(file.readline(_ROW), finite=False)
    except (OSError, RunError):
        return  # missing, or malformed as its readers will say
    if isinstance(first, dict) and first.get("kind") == "run":
        directory.require_own(directory.metrics, first.get("config"), config)


def _last_row_per_kind(lines: list[bytes]) -> LastRows:
    last: dict[str, dict[str, Any]] = {}
    for line in reversed(lines):
        row = parse_json(line, finite=False)
        if row["kind"] not in last:
            _check(row)
            last[row["kind"]] = row
        # No earlier row is needed if the epoch has a validation, or a later one is known.
        epoch = last.get("epoch", {})
        if "train" in last and epoch and (epoch.get("val") or "validation" in last):
            break
    return LastRows(last.get("train"), last.get("epoch"), last.get("validation"))


def _check(row: dict[str, Any]) -> None:
    """Require that the values used by readers are numbers; other versions may omit some."""
    for name in {"epoch", "epochs", "step", "images_per_s"} & row.keys():
        if not math.isfinite(number(row[name])):
            raise TypeError(f"{name} {row[name]}")
    key = read_score(row.get("score")).key
    for name in ("val", "calibrated"):
        number(mapping(row.get(name)).get(key) or 0.0)


def repair(path: Path, rows: bytes) -> str:
    """Write ``rows`` to a file that does not begin with them; returns what it was, or ""."""
    if not rows:
        return ""
    problem = "was damaged"
    try:
        with open_to_read(path) as file:
            if file.read(len(rows)) == rows:
                return ""
    except FileNotFoundError:
        problem = "was missing"
    except OSError as error:
        if error.errno != errno.EINVAL:  # a pipe or device, see open_to_read
            raise
    write_atomically(path, rows)
    return problem
