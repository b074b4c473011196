"""Builds a C++ source of this package once per machine and loads it.

The sources, but for one, need no headers but the standard library's, so that a build takes seconds
and serves every shape, layout and dtype. OpenMP comes from the libgomp that PyTorch has already
loaded: one pool of threads for both.

A library runs as the user who loads it, so it is loaded only from a folder and a file that nobody
else could have written, and only if it is whole: its sha256 stands behind it in the same file,
where the loader of the system does not look.
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
# Not -ffast-math: NaN and infinity must come through, and it would change the process's rounding.
# Nobody reads the exceptions' flags, and keeping them keeps loops with a ReLU's sign from vectors.
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
    """The compiler made no library that loads."""


@cache
def load_library(
    source: Path,
    *flags: str,
    instead: str = "uses PyTorch's own operators",
    slow: bool = False,
) -> ctypes.CDLL | None:
    """``source``, compiled, or None, said once in the log, where it cannot be built.

    Args:
        flags: the compiler's, beside :data:`FLAGS`.
        instead: what normalization does without it.
        slow: it takes too long to be built where it cannot be kept.
    """
    command = _compiler()
    if not command:
        LOG.warning("no C++ compiler found: normalization %s on the CPU", instead)
        return None
    try:
        return _load([*command, *FLAGS, *flags], source, slow)
    except (OSError, BuildError) as error:
        LOG.warning(
            "%s cannot build %s (%s): normalization %s",
            shlex.join(command),
            source.name,
            str(error).splitlines()[0],
            instead,
        )
        return None


def _compiler() -> list[str]:
    """The compiler and its first arguments: CXX may be ``ccache g++``."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    found = shutil.which("g++") or shutil.which("clang++")
    return [found] if found else []


def _load(command: list[str], source: Path, slow: bool) -> ctypes.CDLL:
    name = f"{source.stem}-{_fingerprint(command, source)}.so"
    try:
        library = cache_directory() / name
        if not _is_sound(library):
            with _only_builder(library.parent):
                if not _is_sound(library):
                    if slow:
                        LOG.info("%s is compiled, once: half a minute", source.name)
                    _build(command, source, library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        _say_without_cache(str(error))
        if slow:
            raise BuildError("it cannot be kept") from error
    with tempfile.TemporaryDirectory(prefix="sn_imagenet-") as folder:
        library = Path(folder) / name
        _build(command, source, library)
        return ctypes.CDLL(str(library))  # what is loaded stays when its file is gone


@cache
def _say_without_cache(reason: str) -> None:
    LOG.warning(
        "compiled passes cannot be kept (%s): they are built at each start; set XDG_CACHE_HOME to "
        "a folder of your own",
        reason,
    )


def _build(command: list[str], source: Path, library: Path) -> None:
    """Compile ``source`` and move it into place whole.

    Raises:
        BuildError: the compiler fails, or what it made cannot be loaded.
        OSError: nothing can be written beside ``library``.
    """
    handle, unfinished = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    try:
        try:
            line = [*command, str(source), "-o", unfinished]
            subprocess.run(line, check=True, capture_output=True, timeout=TIMEOUT_S)
        except (OSError, subprocess.SubprocessError) as error:
            raise BuildError(str(error)) from error
        with open(unfinished, "r+b") as file:
            content = file.read()
            if not content:
                raise BuildError("the compiler ended well and wrote nothing")
            file.write(hashlib.sha256(content).digest())
            os.fchmod(file.fileno(), 0o600)
            file.flush()
            os.fsync(file.fileno())
        try:
            ctypes.CDLL(unfinished)
        except OSError as error:
            raise BuildError(str(error)) from error
        os.replace(unfinished, library)
    except BaseException:
        os.unlink(unfinished)
        raise


def _is_sound(library: Path) -> bool:
    """Whether ``library`` is a whole file that only this user, or root, can have written."""
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
def _only_builder(folder: Path) -> Iterator[None]:
    """Wait for processes that build there: ranks that start together build each source once."""
    with open(folder / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
        yield


def _fingerprint(command: list[str], source: Path) -> str:
    """Of all that decides the machine code; a home directory may serve machines of many kinds."""
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
    """The folder of what is built on this machine, made where it is absent, private (0700).

    Raises:
        OSError: it cannot be made, or others could write there or put another in its place.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # no HOME, and a uid without an entry
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
        raise OSError(f"{folder} is no folder")
    if status.st_uid == os.geteuid() and status.st_mode & 0o077:
        # What others put there until now is told by each file's owner.
        folder.chmod(0o700)
        status = folder.lstat()
    if not _is_private(status):
        raise OSError(f"{folder} belongs to another user")
    return folder
