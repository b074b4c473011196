"""The environment variables in which torchrun passes each process its rank and the world size."""

from __future__ import annotations

import os
import re

from sn_imagenet.errors import UserError

_COUNTS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # by several processes


def rank() -> int:
    """This process's rank as torchrun set it; 0 without torchrun."""
    return _number("RANK", 0)


def world_size() -> int:
    """The number of processes that torchrun started; 1 without torchrun."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """This process's rank among those of its machine."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """The number of processes on this machine; all of them, unless torchrun says otherwise."""
    return _number("LOCAL_WORLD_SIZE", world_size())


def check_environment() -> None:
    """Check all of these variables together. Every entry point calls it first.

    Raises:
        UserError: they contradict each other, or some are missing, as after another job.
    """
    for name in _COUNTS:
        if not re.fullmatch(r"[0-9]{1,9}", os.environ.get(name) or "0"):
            _reject(name, "expected a whole number")
    if _number("MASTER_PORT", 0) > 65535:
        _reject("MASTER_PORT", "expected at most 65535")
    local_size = _number("LOCAL_WORLD_SIZE", 1)
    for name, value, size_name, size in (
        ("RANK", rank(), "WORLD_SIZE", world_size()),
        ("LOCAL_RANK", local_rank(), "LOCAL_WORLD_SIZE", max(local_size, world_size())),
    ):
        if size < 1:
            _reject(size_name, "expected at least 1")
        if value >= size:
            is_set = size_name in os.environ
            given = f"={size}" if is_set else f", which is not set (default {size})"
            _reject(name, f"must be below {size_name}{given}")
    if local_size > world_size():
        _reject("LOCAL_WORLD_SIZE", f"expected at most WORLD_SIZE={world_size()}")
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if world_size() > 1 and missing:
        _reject("WORLD_SIZE", f"needs {' and '.join(missing)} too")


def _number(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


def _reject(name: str, problem: str) -> None:
    found = [each for each in (*_COUNTS, "MASTER_ADDR") if each in os.environ]
    raise UserError(
        f"environment variable {name}={os.environ.get(name)}: {problem}. torchrun sets such "
        "variables; if they are left from another job, clear them: unset "
        f"{' '.join(found)}"
    )
