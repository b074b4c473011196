"""The files of a run directory by name, and how they are written: whole or not at all.

::

    config.yaml       the resolved config, written when the run starts
    lock.json         host and pid of the process that trains, while it does
    metrics.jsonl     one line per logged step and per epoch
    last.pt           the newest checkpoint; previous.pt the one before
    final.pt          the trained network
    batch_average.pt  the statistics of its batch average
    result.json       what the run came to
    top1.md, *.png    what it evaluated, and for SN the importance weights
    tensorboard/      a live view, from which nothing is made
    tracked_as.txt    its name in a tracker that keeps its runs elsewhere
    log.txt           what it said, where a sweep started it
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sn_imagenet.errors import UserError

CONFIG = "config.yaml"
LOCK = "lock.json"
METRICS = "metrics.jsonl"
NEWEST = "newest.pt"  # a checkpoint while it is written
LAST = "last.pt"
PREVIOUS = "previous.pt"
FINAL = "final.pt"
BATCH_AVERAGE = "batch_average.pt"
RESULT = "result.json"
TOP1_TABLE = "top1.md"
TENSORBOARD = "tensorboard"
TRACKED_AS = "tracked_as.txt"
LOG = "log.txt"

RUN_DIR_OPTIONS = "runs_dir= or run_dir="  # what chooses the place of a run directory


class RunError(UserError):
    """A run directory cannot be read, written or used."""


def write_atomically(path: Path, content: bytes, chosen_by: str = RUN_DIR_OPTIONS) -> Path:
    """Write to a temporary file beside ``path``, flush it to the disk, rename it; returns ``path``.

    Args:
        chosen_by: the option that chooses the place, for the error.

    Raises:
        RunError: the disk is full, read-only or otherwise refuses; ``path`` is as it was.
    """
    # Each process has its own, since two may write one table, or the failure of one run.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    with _refusal_told(path, temporary, chosen_by):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_and_flush(temporary, content)
        os.replace(temporary, path)
        _flush_names(path.parent)
    return path


def overwrite(path: Path, content: bytes) -> None:
    """Write a file that nobody reads under this name, and flush it to the disk; one that an earlier
    writer left there goes.

    Raises:
        RunError: the disk is full, read-only or otherwise refuses; there is no file then.
    """
    with _refusal_told(path, path, RUN_DIR_OPTIONS):
        path.unlink(missing_ok=True)
        _write_and_flush(path, content)
        _flush_names(path.parent)


def create(path: Path) -> IO[bytes]:
    """Open a new file to write, that is nothing that somebody else has put there.

    In a folder where others may write, a link under this name could lead anywhere.

    Raises:
        OSError: something has this name; or the disk refuses.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def write_text(path: Path, text: str, chosen_by: str = RUN_DIR_OPTIONS) -> Path:
    """Write ``text`` as UTF-8, as :func:`write_atomically` does."""
    return write_atomically(path, text.encode("utf-8"), chosen_by)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinities are refused, since JSON has none."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def file_error(verb: str, path: Path, error: OSError, chosen_by: str = RUN_DIR_OPTIONS) -> RunError:
    """The one error for a file that cannot be read or written."""
    reason = error.strerror or type(error).__name__
    return RunError(
        f"cannot {verb} {path}: {reason}; free some space or allow writing there, or choose "
        f"another place with {chosen_by}"
    )


@contextmanager
def _refusal_told(path: Path, temporary: Path, chosen_by: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        with suppress(OSError):  # the error worth telling is the first
            temporary.unlink(missing_ok=True)
        raise file_error("write", path, error, chosen_by) from error


def _write_and_flush(path: Path, content: bytes) -> None:
    with create(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_names(folder: Path) -> None:
    """Have the names in a folder on the disk: a rename is safe from a power cut only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
