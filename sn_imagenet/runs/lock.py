"""The lock of a run directory. The process that works there holds it and sends heartbeats.

A suspended holder may resume after another process has taken over its lock. So each write first
checks that this process still holds the lock (:func:`raise_if_lock_lost`).

Processes that acquire the lock and readers (tables, sweeps) use the same rules to decide whether
its holder is alive. So a sweep never reports a run as interrupted that it could not start.
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
# A holder whose process cannot be looked up is dead if its last heartbeat is older than this.
STALE_S = 300.0

LockInfo = dict[str, Any]
"""The content of a lock file: which process holds it, and since when."""


class _HeldLock(NamedTuple):
    """A lock that this process holds: its token, and an event that stops its heartbeat."""

    token: str
    stop: threading.Event


_held_locks: dict[Path, _HeldLock] = {}


class RunInUseError(RunError):
    """Another process is using the run directory."""

    exit_code = os.EX_UNAVAILABLE  # 69


class LockLostError(RunInUseError):
    """This process was suspended so long that another one has taken over its run directory."""


def acquire(path: Path) -> None:
    """Make this process the holder of the lock ``path``. A dead holder loses the lock.

    Raises:
        RunInUseError: another process holds it.
        RunError: it cannot be written.
    """
    token = uuid.uuid4().hex
    temporary = path.with_name(f"{path.name}.{token}")
    try:
        with _exclusive(path.parent):
            try:
                with create(temporary) as file:
                    file.write(json.dumps({**this_process(), "token": token}).encode())
                # Compare the heartbeat with a file written now, so that both times come from the
                # clock of the file system.
                _raise_if_held(path, temporary.stat().st_mtime)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise file_error("write", path, error) from error
    _held_locks[path] = _HeldLock(token, threading.Event())
    threading.Thread(target=_keep_alive, args=(path,), name="lock heartbeat", daemon=True).start()


def release(path: Path) -> None:
    """Release the lock if this process still holds it."""
    with suppress(OSError), _exclusive(path.parent):
        if _is_held_here(path):
            path.unlink(missing_ok=True)
    held = _held_locks.pop(path, None)
    if held is not None:
        held.stop.set()


def raise_if_lock_lost(path: Path) -> None:
    """Check the lock ``path``; call this before each write to its run directory. A process that
    never acquired the lock may write.

    Raises:
        LockLostError: this process acquired the lock and no longer holds it.
        RunError: the lock cannot be read.
    """
    try:
        lost = path in _held_locks and not _is_held_here(path)
    except OSError as error:
        raise file_error("read", path, error) from error
    if lost:
        holder = _read_holder(path)
        now = f"process {holder['pid']} on {holder['host']}" if holder else "no process"
        raise LockLostError(
            f"{path} is now held by {now}: this process was suspended for too long or the lock "
            "was removed; this process ends without writing anything more there"
        )


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock ``path``."""
    holder = _read_holder(path)
    return holder is not None and _holder_is_alive(holder, path, time.time())


def this_process() -> LockInfo:
    """The content of a lock that this process acquires, without its token."""
    return {
        **_pid_scope(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "process_start": _process_start(os.getpid()),
        "heartbeat_s": HEARTBEAT_S,
    }


@contextmanager
def _exclusive(directory: Path) -> Iterator[None]:
    """Exclude the other processes of this host that read or write the lock."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # without flock, a race of a few milliseconds remains
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _raise_if_held(path: Path, now: float) -> None:
    holder = _read_holder(path)
    if holder is None or _is_held_here(path):
        return  # free, or its writer died while writing it
    if _holder_is_alive(holder, path, now):
        raise RunInUseError(
            f"{path.parent} is in use by process {holder['pid']} on {holder['host']} since "
            f"{holder.get('started')}; wait for it, or remove {path} if that process is dead"
        )


def _keep_alive(path: Path) -> None:
    held = _held_locks[path]
    while not held.stop.wait(HEARTBEAT_S) and _held_locks.get(path) is held:
        with suppress(OSError):
            if _is_held_here(path):  # do not keep the lock of another process alive
                os.utime(path)


def _read_holder(path: Path) -> LockInfo | None:
    """The holder that a lock file names; None if the file is missing or names none."""
    try:
        holder = read_json(path)
        pid = holder["pid"]
        if not isinstance(pid, int) or pid < 1:
            return None
        return {**holder, "host": str(holder["host"])}
    except (OSError, RunError, KeyError, TypeError):
        return None


def _is_held_here(path: Path) -> bool:
    """Whether the lock file is the one that this process wrote.

    Raises:
        OSError: it cannot be read, so the answer is unknown.
    """
    held = _held_locks.get(path)
    try:
        return held is not None and read_json(path)["token"] == held.token
    except (FileNotFoundError, RunError, KeyError, TypeError):
        return False


def _holder_is_alive(holder: LockInfo, path: Path, now: float) -> bool:
    """Whether the holder of a lock is still running.

    If its pid is valid here, its process is looked up by pid and start time, because pids are
    reused; neither depends on the clock. A holder elsewhere (another host, a container with the
    same host name, this host before a reboot) is judged by its heartbeat, which is the
    modification time of the lock.

    Args:
        now: the modification time that a file written now would have.
    """
    if all(holder.get(key, here) == here for key, here in _pid_scope().items()):
        return _process_is_alive(holder["pid"], holder.get("process_start"))
    if not holder.get("heartbeat_s"):
        return True
    try:
        return now - path.stat().st_mtime < STALE_S
    except OSError:
        return False  # the lock was released meanwhile


def _pid_scope() -> LockInfo:
    """The scope in which a pid is unique. A value is None if the system does not provide it."""
    return {
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pid_namespace": _pid_namespace(),
    }


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _pid_namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _process_is_alive(pid: int, started: object) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # alive, but owned by another user
    now = _process_start(pid)
    if now == "":
        return False
    return started is None or now is None or now == started


def _process_start(pid: int) -> str | None:
    """When a process started: boot id and clock ticks since boot. "" for a zombie, which has ended
    but was not waited for; None if the system does not provide it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the process name before it may contain anything
    return "" if fields[0] in "ZX" else f"{_boot_id()}:{fields[19]}"
