"""Build a C++ source of this package once per machine, and load it.

All sources but one need only the headers of the standard library, so a build takes seconds and
serves every shape, layout and dtype. OpenMP comes from the libgomp that PyTorch has already loaded,
so both share one pool of threads.

A library runs with the rights of the user who loads it. It is therefore loaded only from a folder
and a file that no other user could have written, and only if it is complete: its sha256 is appended
to the file, where the system's loader does not look.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

LOG = logging.getLogger(__name__)
# Not -ffast-math: NaN and infinity must propagate, and it would change the process's rounding.
# -fno-trapping-math: nothing reads the exception flags, which prevent vector loops with a ReLU.
FLAGS = (
    "-O3",
    "-march=native",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
)
DIGEST_BYTES = 32
TIMEOUT_S = 120.0


class BuildError(Exception):
    """The compiler produced no library that loads."""


@cache
def load_library(
    source: Path,
    *flags: str,
    fallback: str = "uses PyTorch's own operators",
    slow: bool = False,
) -> ctypes.CDLL | None:
    """Compile ``source`` and load it; if that fails, log a warning once and return None.

    Args:
        flags: compiler flags in addition to :data:`FLAGS`.
        fallback: what normalization does without the library, for the warning.
        slow: the build takes too long to repeat at each start, so it requires the cache.
    """
    command = _compiler()
    if not command:
        LOG.warning("no C++ compiler found: normalization %s on the CPU", fallback)
        return None
    try:
        return _load([*command, *FLAGS, *flags], source, slow)
    except (OSError, BuildError) as error:
        LOG.warning(
            "%s cannot build %s (%s): normalization %s",
            shlex.join(command),
            source.name,
            str(error).splitlines()[0],
            fallback,
        )
        return None


def _compiler() -> list[str]:
    """The compiler and its first arguments; CXX may be ``ccache g++``."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    path = shutil.which("g++") or shutil.which("clang++")
    return [path] if path else []


def _load(command: list[str], source: Path, slow: bool) -> ctypes.CDLL:
    name = f"{source.stem}-{_fingerprint(command, source)}.so"
    try:
        library = cache_directory() / name
        if not _is_valid(library):
            with _build_lock(library.parent):
                if not _is_valid(library):
                    if slow:
                        LOG.info("Compiling %s (once, about half a minute)", source.name)
                    _build(command, source, library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        _warn_without_cache(str(error))
        if slow:
            raise BuildError("it cannot be cached") from error
    with tempfile.TemporaryDirectory(prefix="sn_imagenet-") as folder:
        library = Path(folder) / name
        _build(command, source, library)
        return ctypes.CDLL(str(library))  # a loaded library survives the removal of its file


@cache
def _warn_without_cache(reason: str) -> None:
    LOG.warning(
        "compiled kernels cannot be cached (%s): they are built at each start; set XDG_CACHE_HOME "
        "to a folder of your own",
        reason,
    )


def _build(command: list[str], source: Path, library: Path) -> None:
    """Compile ``source`` and move the complete library into place.

    Raises:
        BuildError: the compiler fails, or its output cannot be loaded.
        OSError: the folder of ``library`` is not writable.
    """
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    try:
        try:
            arguments = [*command, str(source), "-o", temporary]
            subprocess.run(arguments, check=True, capture_output=True, timeout=TIMEOUT_S)
        except (OSError, subprocess.SubprocessError) as error:
            raise BuildError(str(error)) from error
        with open(temporary, "r+b") as file:
            content = file.read()
            if not content:
                raise BuildError("the compiler succeeded but wrote nothing")
            file.write(hashlib.sha256(content).digest())
            os.fchmod(file.fileno(), 0o600)
            file.flush()
            os.fsync(file.fileno())
        try:
            ctypes.CDLL(temporary)
        except OSError as error:
            raise BuildError(str(error)) from error
        os.replace(temporary, library)
    except BaseException:
        os.unlink(temporary)
        raise


def _is_valid(library: Path) -> bool:
    """Whether ``library`` is a complete file that only this user or root can have written."""
    try:
        with open(os.open(library, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or not _is_private(status):
                return False
            content = file.read()
    except OSError:
        return False
    return hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@contextmanager
def _build_lock(folder: Path) -> Iterator[None]:
    """Lock ``folder`` for building, so that ranks that start together build each source once."""
    with open(folder / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        yield


def _fingerprint(command: list[str], source: Path) -> str:
    """Hash of everything that determines the machine code; machines may share a home directory."""
    digest = hashlib.sha256(source.read_bytes())
    for header in sorted(source.parent.glob("*.h")):
        digest.update(header.read_bytes())
    digest.update(repr((command, platform.machine(), _processor())).encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


def cache_directory() -> Path:
    """The private folder (0700) for libraries built on this machine; created if missing.

    Raises:
        OSError: it cannot be created, or other users could write to it or replace it.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # no HOME, and no passwd entry for the uid
        raise OSError(f"this user has no home directory: {error}") from error
    base.mkdir(parents=True, exist_ok=True)
    folder = base.resolve() / "sn_imagenet"
    for parent in folder.parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise OSError(f"{parent} is writable by everybody")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(f"{folder} is not a folder")
    if status.st_uid == os.geteuid() and status.st_mode & 0o077:
        # _is_valid checks the owner of each file that others may have put there before.
        folder.chmod(0o700)
        status = folder.lstat()
    if not _is_private(status):
        raise OSError(f"{folder} belongs to another user")
    return folder
