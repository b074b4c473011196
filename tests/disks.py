"""Disks that refuse: real limits of the operating system, no mocks."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def size_limit(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes, as where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(path: Path, allowed: int = 0o555) -> Iterator[None]:
    """Nothing can be written in the folder ``path``: root, whom modes do not bind, is nobody.
    ``allowed``: its mode meanwhile; with 0 nothing can be read there either."""
    is_root = os.geteuid() == 0
    mode = path.stat().st_mode
    path.chmod(allowed)
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        path.chmod(mode)
