"""The names of the files in a run directory (docs/results.md), and atomic writing of them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sn_imagenet.errors import UserError, as_text
from sn_imagenet.overrides import quoted

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
NEWEST = "newest.pt"  # a checkpoint that is being written
FINAL = "final.pt"
BATCH_AVERAGE = "batch_average.pt"
RESULT = "result.json"
TOP1_TABLE = "top1.md"
SCORE_TABLE = "score.md"  # where the score is not top-1

RUN_DIR_OPTIONS = "runs_dir= or run_dir="  # the options that set the run directory


# What mends a damaged file. Any other is a checkpoint of the training.
_ADVICE = {
    CONFIG: "remove this file alone and run the training command again, which writes it again",
    METRICS: "run the training command again, which repairs it",
    FINAL: "run the training command again, which writes it again from the last checkpoint",
    BATCH_AVERAGE: "remove it; python evaluate.py {run} computes it again",
    RESULT: "remove it and run the training command again, which evaluates the run again",
}
_CHECKPOINT_ADVICE = "remove it to continue from an earlier one or from the start"


def advice(path: Path) -> str:
    """What the user can do about the damaged file ``path`` of a run."""
    return _ADVICE.get(path.name, _CHECKPOINT_ADVICE).format(run=quoted("run", str(path.parent)))


class RunError(UserError):
    """A run directory cannot be read, written or used."""


def write_atomically(path: Path, content: bytes, chosen_by: str = RUN_DIR_OPTIONS) -> Path:
    """Write a temporary file beside ``path``, flush it and rename it; returns ``path``.

    Args:
        chosen_by: the option that sets the path, for the error message.

    Raises:
        RunError: the disk is full, read-only or fails; ``path`` is unchanged.
    """
    # Unique names, since two processes may write the same table or the failure of the same run.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    with disk_errors(path, chosen_by, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:  # never an existing link, which could lead anywhere
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    return path


def clear_killed_writes(folder: Path) -> None:
    """Remove the temporary files that :func:`write_atomically` has left in a run directory because
    it was killed: those of files that are written only under the run's lock, which the caller
    holds."""
    for path in folder.glob("*.tmp"):
        name = re.fullmatch(r"(.+)\.[0-9a-f]{16}\.tmp", path.name)
        if name and name[1] in (CONFIG, METRICS, NEWEST, FINAL, BATCH_AVERAGE, RESULT):
            with suppress(OSError):
                path.unlink()


def write_text(path: Path, text: str, chosen_by: str = RUN_DIR_OPTIONS) -> Path:
    """Write ``text`` as UTF-8 with :func:`write_atomically`."""
    return write_atomically(path, as_text(text).encode("utf-8"), chosen_by)


def write_json(path: Path, content: Any, chosen_by: str = RUN_DIR_OPTIONS) -> Path:
    """Write JSON with :func:`write_atomically`. Raises ValueError for NaN and infinities, which
    JSON cannot hold."""
    text = json.dumps(printable(content), indent=1, allow_nan=False) + "\n"
    return write_text(path, text, chosen_by)


def csv_table(rows: Sequence[Mapping[str, object]]) -> str:
    """``rows`` as CSV below a header line of all their keys; a missing key is an empty field."""
    buffer = io.StringIO()
    keys = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(buffer, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def printable(content: Any) -> Any:
    """``content`` as JSON gives it back: lists for tuples, all text as :func:`as_text` makes it."""
    if isinstance(content, dict):
        return {printable(key): printable(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [printable(value) for value in content]
    return as_text(content) if isinstance(content, str) else content


@contextmanager
def disk_errors(
    path: Path, chosen_by: str = RUN_DIR_OPTIONS, temporary: Path | None = None
) -> Iterator[None]:
    """Within it, an OSError becomes the error that ``path`` cannot be written, and how to fix it.

    Args:
        chosen_by: the option that sets the path.
        temporary: a file to remove then.

    Raises:
        RunError: there was an OSError.
    """
    try:
        yield
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):  # report the first error, not a second one
                temporary.unlink(missing_ok=True)
        reason = error.strerror or type(error).__name__
        raise RunError(
            f"cannot write {path}: {reason}; free some space or allow writing there, or choose "
            f"another place with {chosen_by}"
        ) from error


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk; only then does a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
