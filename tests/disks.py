"""Full and read-only disks, simulated with limits of the operating system instead of mocks."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def size_limit(size: int) -> Iterator[None]:
    """Keep every file of this process at ``size`` bytes or fewer, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """Let this process allocate at most ``more`` bytes of address space."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def read_only(path: Path, mode: int = 0o555) -> Iterator[None]:
    """Make the folder ``path`` read-only, or with ``mode=0`` unreadable too. File modes do not bind
    root, so root becomes the user nobody meanwhile."""
    is_root = os.geteuid() == 0
    original_mode = path.stat().st_mode
    path.chmod(mode)
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        path.chmod(original_mode)
