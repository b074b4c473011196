"""Who holds the lock of a run directory, and whether it still lives.

Those who take locks (:mod:`sn_imagenet.runs`) and those who only look (tables, sweeps) decide it
by the same rules, so that no sweep calls interrupted what a start would refuse.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

HEARTBEAT_S = 15.0
# A holder on another host is gone when its heartbeat stopped so long ago.
STALE_S = 300.0

Holder = dict[str, Any]


def this_process() -> Holder:
    """What this process writes into a lock that it takes."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "process_start": process_start(os.getpid()),
        "heartbeat_s": HEARTBEAT_S,
    }


def read_holder(lock: Path) -> Holder | None:
    """The holder that a lock names; None if there is no lock or it was never written out."""
    try:
        holder = json.loads(lock.read_text())
        return {**holder, "host": str(holder["host"]), "pid": int(holder["pid"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_mine(holder: Holder | None) -> bool:
    """Whether the holder is this process."""
    if holder is None or holder["host"] != socket.gethostname() or holder["pid"] != os.getpid():
        return False
    return holder.get("process_start") in (None, process_start(os.getpid()))


def lives(holder: Holder, lock: Path, now: float | None = None) -> bool:
    """Whether the holder of a lock is still at work.

    On this host its process is looked up, with the time it started since a pid is used again;
    neither depends on the clock. Of a holder on another host only the heartbeat is seen: the
    lock's modification time.

    Args:
        now: what a file written now would have as its modification time, by the clock of the file
            system; by default the clock of this host stands for it.
    """
    if holder["host"] == socket.gethostname():
        return _is_alive(holder["pid"], holder.get("process_start"))
    if not holder.get("heartbeat_s"):
        return True
    try:
        return (time.time() if now is None else now) - lock.stat().st_mtime < STALE_S
    except OSError:
        return False  # released meanwhile


def is_held(lock: Path) -> bool:
    """Whether a process works in the run directory of ``lock``."""
    holder = read_holder(lock)
    return holder is not None and lives(holder, lock)


def process_start(pid: int) -> str | None:
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


def _is_alive(pid: int, started: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # alive, another user's
    now = process_start(pid)
    if now == "":
        return False
    return started is None or now is None or now == started
