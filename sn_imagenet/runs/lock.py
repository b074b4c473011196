"""The lock of a run directory: held by the one process that works there, kept warm, given back.

Those who take it and those who only look (tables, sweeps) decide by the same rules whether its
holder lives, so that no sweep calls interrupted what a start would refuse.
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
from typing import Any

from sn_imagenet.runs.files import RunError, cannot

HEARTBEAT_S = 15.0
# A holder on another host is gone when its heartbeat stopped so long ago.
STALE_S = 300.0

Holder = dict[str, Any]

_heartbeats: dict[Path, threading.Event] = {}


class RunInUseError(RunError):
    """Another process works in the run directory: nothing is wrong, it was there first."""

    exit_code = os.EX_UNAVAILABLE  # 69


def take(path: Path) -> None:
    """Make this process the holder of ``path``; a dead holder's lock is taken over.

    Raises:
        RunInUseError: another process holds it.
        RunError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with _one_at_a_time(path.parent):
            try:
                temporary.write_text(json.dumps(this_process()))
                # A heartbeat is measured against a file written now, so that both times are by the
                # clock of the file system.
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
    if _is_mine(_read_holder(path)):
        path.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Whether a process works in the run directory of the lock ``path``."""
    holder = _read_holder(path)
    return holder is not None and _lives(holder, path, time.time())


def this_process() -> Holder:
    """What this process writes into a lock that it takes."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "process_start": _process_start(os.getpid()),
        "heartbeat_s": HEARTBEAT_S,
    }


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
    holder = _read_holder(path)
    if holder is None or _is_mine(holder):
        return  # free, or a process died while writing it
    if _lives(holder, path, now):
        raise RunInUseError(
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


def _read_holder(path: Path) -> Holder | None:
    """The holder that a lock names; None if there is no lock or it was never written out."""
    try:
        holder = json.loads(path.read_text())
        return {**holder, "host": str(holder["host"]), "pid": int(holder["pid"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_mine(holder: Holder | None) -> bool:
    """Whether the holder is this process."""
    if holder is None or holder["host"] != socket.gethostname() or holder["pid"] != os.getpid():
        return False
    return holder.get("process_start") in (None, _process_start(os.getpid()))


def _lives(holder: Holder, path: Path, now: float) -> bool:
    """Whether the holder of a lock is still at work.

    On this host its process is looked up, with the time it started since a pid is used again;
    neither depends on the clock. Of a holder on another host only the heartbeat is seen: the
    lock's modification time.

    Args:
        now: what a file written now would have as its modification time.
    """
    if holder["host"] == socket.gethostname():
        return _is_alive(holder["pid"], holder.get("process_start"))
    if not holder.get("heartbeat_s"):
        return True
    try:
        return now - path.stat().st_mtime < STALE_S
    except OSError:
        return False  # released meanwhile


def _is_alive(pid: int, started: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # alive, another user's
    now = _process_start(pid)
    if now == "":
        return False
    return started is None or now is None or now == started


def _process_start(pid: int) -> str | None:
    """When a process started, as boot and clock ticks since; "" if it has ended and is only not
    waited for yet; None where the system does not tell.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before may hold anything
    return "" if fields[0] in "ZX" else f"{boot}:{fields[19]}"
