"""The lock of a run directory: a kernel lock on a file that its holder also touches regularly.

``flock`` ends with its process, however that ends, and reaches other containers and, on NFS, other
hosts. On some network file systems it reaches only this host, or is missing. So a lock of another
host also counts as held until its file has not been touched for :data:`STALE_S`.

Processes that acquire the lock and readers (tables, sweeps) use the same rule. So a sweep never
reports a run as interrupted that it could not start.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from sn_imagenet.runs.files import RunError, disk_errors
from sn_imagenet.runs.reading import open_to_read

HEARTBEAT_S = 15.0
STALE_S = 300.0
RETRY_S = 1.0  # a reader may hold the lock for an instant


class RunInUseError(RunError):
    """Another process is using the run directory."""

    exit_code = os.EX_UNAVAILABLE  # 69


_held: set[IO[bytes]] = set()  # the files of the locks that this process holds


def _forget_all() -> None:
    """A forked worker that outlives a killed run must not keep its lock."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_forget_all)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within it, this process holds the lock ``path``. A dead holder loses the lock.

    Raises:
        RunInUseError: another process holds it.
        RunError: it cannot be written.
    """
    with disk_errors(path):
        file = _open_locked(path)
        try:
            holder = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }
            file.truncate(0)
            file.write(json.dumps(holder).encode())
        except OSError:
            path.unlink()
            raise
    stop = threading.Event()
    _held.add(file)
    threading.Thread(
        target=_keep_alive, args=(file, stop), name="lock heartbeat", daemon=True
    ).start()
    try:
        yield
    finally:
        stop.set()
        with suppress(OSError, ValueError):  # ValueError: closed in a forked process
            # Not that of a process that took over, as if this one were dead.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                path.unlink()
        _held.discard(file)
        file.close()


def _open_locked(path: Path) -> IO[bytes]:
    """The lock file, locked; errors as :func:`locked`, and OSError."""
    deadline = time.monotonic() + RETRY_S
    while True:
        with suppress(FileNotFoundError):
            open_to_read(path).close()  # a regular file
        file = open(path, "a+b", buffering=0)  # noqa: SIM115 - open as long as the lock is held
        if not _is_taken(path, file, fcntl.LOCK_EX):
            # A holder that has released the lock meanwhile has removed this file.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        elif time.monotonic() > deadline:
            raise _in_use(path, _read_holder(file))
        file.close()
        time.sleep(0.05)


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock ``path``."""
    try:
        with open_to_read(path) as file:
            return _is_taken(path, file, fcntl.LOCK_SH)
    except OSError:
        return False


def _is_taken(path: Path, file: IO[bytes], kind: int) -> bool:
    """Try to lock the open ``file``; whether another process holds it."""
    anywhere = False
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        anywhere = True  # this file system has no locks: only the heartbeat tells
    holder = _read_holder(file)
    if holder is None or not (anywhere or holder["host"] != socket.gethostname()):
        return False
    return _now(path.parent) - os.fstat(file.fileno()).st_mtime < STALE_S


def _now(folder: Path) -> float:
    """The time on the clock of the file system, where ``folder`` can be written."""
    try:
        with TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def _read_holder(file: IO[bytes]) -> dict[str, Any] | None:
    """The holder that a lock file names; None if it names none."""
    file.seek(0)
    try:
        holder = json.loads(file.read(1 << 16))
        return {"host": str(holder["host"]), "pid": int(holder["pid"]), "since": holder["started"]}
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        return None


def _in_use(path: Path, holder: dict[str, Any] | None) -> RunInUseError:
    process = "another process"
    if holder is not None:
        process = "process {pid} on {host} since {since}".format(**holder)
    return RunInUseError(
        f"{path.parent} is in use by {process}; wait for it, or remove {path} if that process is "
        "dead"
    )


def _keep_alive(file: IO[bytes], stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with suppress(OSError, ValueError):  # ValueError: closed meanwhile
            os.utime(file.fileno())
