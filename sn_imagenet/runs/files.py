"""Files that are either whole or not there."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from sn_imagenet.errors import UserError


class RunError(UserError):
    """A run directory cannot be read, written or used."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary file beside ``path``, flush it to the disk, rename it.

    Raises:
        RunError: the disk is full, read-only or otherwise refuses; ``path`` is as it was.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_directory(path.parent)
    except OSError as error:
        with suppress(OSError):  # the error worth telling is the first
            temporary.unlink(missing_ok=True)
        raise cannot("write", path, error) from error


def flush_directory(path: Path) -> None:
    """Have the names in a directory on the disk: a rename is safe from a power cut only then."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinities are refused, since JSON has none."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(path, text.encode())


def cannot(verb: str, path: Path, error: OSError) -> RunError:
    """The one error for a file that cannot be read or written."""
    reason = error.strerror or type(error).__name__
    return RunError(
        f"cannot {verb} {path}: {reason}; free some space or allow writing there, or choose "
        "another place with runs_dir= or run_dir="
    )
