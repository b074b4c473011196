"""The lock of a run directory: held by the one process that works there, kept warm, given back.

A holder that stood still may wake after another has taken its lock over: before each write it looks
whether the lock is still its own (:func:`raise_if_lock_lost`).

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
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from sn_imagenet.runs.files import RunError, create, file_error
from sn_imagenet.runs.reading import read_json

HEARTBEAT_S = 15.0
# A holder whose process cannot be looked up is gone when its heartbeat stopped so long ago.
STALE_S = 300.0

Holder = dict[str, Any]


class _Held(NamedTuple):
    """A lock that this process has taken: what it knows it by, what ends its heartbeat."""

    token: str
    stop: threading.Event


_held: dict[Path, _Held] = {}


class RunInUseError(RunError):
    """Another process works in the run directory: nothing is wrong, it was there first."""

    exit_code = os.EX_UNAVAILABLE  # 69


class LockLostError(RunInUseError):
    """This process stood still for so long that another has taken its run directory over."""


def acquire(path: Path) -> None:
    """Make this process the holder of ``path``; a dead holder's lock is taken over.

    Raises:
        RunInUseError: another process holds it.
        RunError: it cannot be written.
    """
    token = uuid.uuid4().hex
    temporary = path.with_name(f"{path.name}.{token}")
    try:
        with _one_at_a_time(path.parent):
            try:
                with create(temporary) as file:
                    file.write(json.dumps({**this_process(), "token": token}).encode())
                # A heartbeat is measured against a file written now, so that both times are by the
                # clock of the file system.
                _refuse_if_held(path, temporary.stat().st_mtime)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise file_error("write", path, error) from error
    _held[path] = _Held(token, threading.Event())
    threading.Thread(target=_beat, args=(path,), name="lock heartbeat", daemon=True).start()


def release(path: Path) -> None:
    """Give the lock back, if this process still holds it."""
    with suppress(OSError), _one_at_a_time(path.parent):
        if _is_mine(path):
            path.unlink(missing_ok=True)
    held = _held.pop(path, None)
    if held is not None:
        held.stop.set()


def raise_if_lock_lost(path: Path) -> None:
    """To be called before each write into the run directory of the lock ``path``. A process that
    never took the lock may write.

    Raises:
        LockLostError: this process took it, and it is not its own any more.
        RunError: it cannot be read.
    """
    try:
        lost = path in _held and not _is_mine(path)
    except OSError as error:
        raise file_error("read", path, error) from error
    if lost:
        holder = _read_holder(path)
        now = f"process {holder['pid']} on {holder['host']}" if holder else "nobody"
        raise LockLostError(
            f"{path} is not this process's any more: it is held by {now}, since this one stood "
            "still or the lock was removed; it stops and writes nothing more there"
        )


def is_held(path: Path) -> bool:
    """Whether a process works in the run directory of the lock ``path``."""
    holder = _read_holder(path)
    return holder is not None and _lives(holder, path, time.time())


def this_process() -> Holder:
    """What this process writes into a lock that it takes."""
    return {
        **_place(),
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
    if holder is None or _is_mine(path):
        return  # free, or a process died while writing it
    if _lives(holder, path, now):
        raise RunInUseError(
            f"{path.parent} is in use by process {holder['pid']} on {holder['host']} since "
            f"{holder.get('started')}; wait for it, or remove {path} if it is gone"
        )


def _beat(path: Path) -> None:
    held = _held[path]
    while not held.stop.wait(HEARTBEAT_S) and _held.get(path) is held:
        with suppress(OSError):
            if _is_mine(path):  # another's must not seem alive for this one's sake
                os.utime(path)


def _read_holder(path: Path) -> Holder | None:
    """The holder that a lock names; None if there is no lock or it names none."""
    try:
        holder = read_json(path)
        pid = holder["pid"]
        if not isinstance(pid, int) or pid < 1:
            return None
        return {**holder, "host": str(holder["host"])}
    except (OSError, RunError, KeyError, TypeError):
        return None


def _is_mine(path: Path) -> bool:
    """Whether the lock is the one that this process wrote.

    Raises:
        OSError: it cannot be read, which tells nothing.
    """
    held = _held.get(path)
    try:
        return held is not None and read_json(path)["token"] == held.token
    except (FileNotFoundError, RunError, KeyError, TypeError):
        return False


def _lives(holder: Holder, path: Path, now: float) -> bool:
    """Whether the holder of a lock is still at work.

    Where its pid means the same as here, its process is looked up, with the time it started since a
    pid is used again; neither depends on the clock. Of a holder elsewhere (another host, a
    container that has its name, this one before it was started anew) only the heartbeat is seen:
    the lock's modification time.

    Args:
        now: what a file written now would have as its modification time.
    """
    if all(holder.get(key, here) == here for key, here in _place().items()):
        return _is_alive(holder["pid"], holder.get("process_start"))
    if not holder.get("heartbeat_s"):
        return True
    try:
        return now - path.stat().st_mtime < STALE_S
    except OSError:
        return False  # released meanwhile


def _place() -> Holder:
    """Within what a pid means one process; None where the system does not tell."""
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid_namespace": _pid_namespace(),
    }


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _pid_namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _is_alive(pid: int, started: object) -> bool:
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
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before may hold anything
    return "" if fields[0] in "ZX" else f"{_boot()}:{fields[19]}"
