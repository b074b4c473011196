"""``metrics.jsonl``: appended to by the one that trains, read by all while it is."""

from __future__ import annotations

import json
import math
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from sn_imagenet.runs.files import LOCK, RunError, file_error, write_atomically
from sn_imagenet.runs.lock import raise_if_lock_lost
from sn_imagenet.runs.reading import mapping, number, open_to_read, parse_json

_FIRST = 1 << 16
_LONGEST = 1 << 24  # bytes; far beyond the rows of one epoch of ImageNet


class MetricsFile:
    """Appends rows to a ``metrics.jsonl``.

    Args:
        path: of the file.
        rows: what the file begins with, of earlier starts; those after the checkpoint are written
            again by the resumed run.

    ``damage``: what was wrong with the file of earlier starts, which ``rows`` have put right; empty
    if nothing was.

    Raises:
        RunError: the file cannot be written (a full or read-only disk).
    """

    def __init__(self, path: Path, rows: bytes = b"") -> None:
        self._path = path
        self._packer = zlib.compressobj()
        self._packed = bytearray(self._packer.compress(rows))
        try:
            self.damage = _damage(path, rows)
            if self.damage:
                write_atomically(path, rows)
            # Through no link, which could lead to a file that is not the run's.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.fdopen(os.open(path, flags, 0o666), "ab")
            self._file.truncate(len(rows))
        except OSError as error:
            raise file_error("write", path, error) from error

    def compressed_rows(self) -> bytes:
        """All rows so far, to be kept with a checkpoint: of some MB, and a quarter of it packed."""
        return bytes(self._packed) + self._packer.copy().flush()

    def write(self, row: dict[str, Any]) -> None:
        """Append ``row``.

        Raises:
            LockLostError: another process has taken the directory over.
            RunError: the disk refuses.
        """
        raise_if_lock_lost(self._path.with_name(LOCK))
        line = json.dumps(row).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise file_error("write", self._path, error) from error
        self._packed += self._packer.compress(line)

    def sync(self) -> None:
        """Have the rows on the disk, so that a checkpoint never knows of more than there are.

        Raises:
            RunError: the disk refuses.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise file_error("write", self._path, error) from error

    def close(self) -> None:
        """Close it. Rows were flushed as they were written, so that an error (the disk is still
        full) tells nothing new and must not hide the one that ended the run.
        """
        with suppress(OSError):
            self._file.close()


def decompress_rows(packed: bytes) -> bytes:
    """The inverse of :meth:`MetricsFile.compressed_rows`.

    Raises:
        ValueError: it is something else.
    """
    try:
        return zlib.decompress(packed)
    except zlib.error as error:
        raise ValueError(f"its metrics cannot be decompressed: {error}") from error


class LastRows(NamedTuple):
    """The last row of each kind; None where there is none."""

    train: dict[str, Any] | None = None
    epoch: dict[str, Any] | None = None


def last_rows(path: Path) -> LastRows:
    """The last rows of a ``metrics.jsonl``; one that is being written is passed over. Reads from
    the end, as much as it needs.

    Raises:
        RunError: a row that was read is none that a run writes.
    """
    try:
        with open_to_read(path) as file:
            size = file.seek(0, os.SEEK_END)
            length = _FIRST
            while True:
                file.seek(max(0, size - length))
                lines = file.read(min(length, size)).split(b"\n")
                # The first is cut off where it is not the file's, the last by a writer at work.
                found = _last_of_each(lines[:-1] if length >= size else lines[1:-1])
                if (found.train and found.epoch) or length >= min(size, _LONGEST):
                    return found
                length *= 8
    except OSError:
        return LastRows()
    except (RunError, KeyError, TypeError, AttributeError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(
            f"{path}: malformed row: {reason}; the command that started the run mends it"
        ) from error


def _last_of_each(lines: list[bytes]) -> LastRows:
    found: dict[str, dict[str, Any]] = {}
    for line in reversed(lines):
        row = parse_json(line, finite=False)
        if row["kind"] not in found:
            _check(row)
            found[row["kind"]] = row
        if found.keys() >= {"train", "epoch"}:
            break
    return LastRows(found.get("train"), found.get("epoch"))


def _check(row: dict[str, Any]) -> None:
    """Whether what its readers count with are numbers; another version may write fewer."""
    for name in {"epoch", "epochs", "step", "images_per_s"} & row.keys():
        if not math.isfinite(number(row[name])):
            raise TypeError(f"{name} {row[name]}")
    for name in ("val", "calibrated"):
        number(mapping(row.get(name)).get("top1", 0.0))


def _damage(path: Path, rows: bytes) -> str:
    """In what way a file does not begin with ``rows``; empty where it does."""
    if not rows:
        return ""
    total = rows.count(b"\n")
    try:
        with open_to_read(path) as file:
            found = file.read(len(rows))
    except FileNotFoundError:
        return f"was gone, with {total} rows"
    if found == rows:
        return ""
    if rows.startswith(found):
        left = found.count(b"\n")
        return f"had lost its end: {left} of {total} rows were left"
    lines = zip(found.split(b"\n"), rows.split(b"\n"), strict=False)
    wrong = next(number for number, (a, b) in enumerate(lines, start=1) if a != b)
    return f"had something else in line {wrong} than the run wrote there"
