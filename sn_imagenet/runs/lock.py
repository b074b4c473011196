"""The lock of a run directory: taken by the one process that works there, kept warm, given back."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sn_imagenet.holders import HEARTBEAT_S, is_mine, lives, read_holder, this_process
from sn_imagenet.runs.files import RunError, cannot

_heartbeats: dict[Path, threading.Event] = {}


def take(path: Path) -> None:
    """Make this process the holder of ``path``; a dead holder's lock is taken over.

    Whether it is dead, :func:`sn_imagenet.holders.lives` decides; a heartbeat is measured against a
    file written now, so that both times are by the clock of the file system.

    Raises:
        RunError: another process holds it, or it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with _one_at_a_time(path.parent):
            try:
                temporary.write_text(json.dumps(this_process()))
                _refuse_if_held(path, temporary.stat().st_mtime)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot("write", path, error) from error
    _start_heartbeat(path)


def release(path: Path) -> None:
    """Give the lock back, if this process holds it."""
    beat = _heartbeats.pop(path, None)
    if beat is not None:
        beat.set()
    if is_mine(read_holder(path)):
        path.unlink(missing_ok=True)


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Of the processes of this host that look at the lock, one at a time."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without flock: the window is milliseconds
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _refuse_if_held(path: Path, now: float) -> None:
    holder = read_holder(path)
    if holder is None or is_mine(holder):
        return  # free, or a process died while writing it
    if lives(holder, path, now):
        raise RunError(
            f"{path.parent} is in use by process {holder['pid']} on {holder['host']} since "
            f"{holder.get('started')}; wait for it, or remove {path} if it is gone"
        )


def _start_heartbeat(path: Path) -> None:
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_S):
            with suppress(OSError):
                os.utime(path)

    _heartbeats[path] = stop
    threading.Thread(target=beat, name="lock heartbeat", daemon=True).start()
