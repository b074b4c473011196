"""Build a C++ source once per machine, and load it.

OpenMP comes from the libgomp that PyTorch has already loaded, so both share one pool of threads.

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
TIMEOUT_S = 900.0  # operators.cpp takes half a minute on an idle core


class BuildError(Exception):
    """The compiler produced no library that loads."""


@cache
def load_library(source: Path, *flags: str, otherwise: str) -> ctypes.CDLL | None:
    """Compile ``source`` and load it; if that fails, log a warning once and return None.

    Args:
        flags: compiler flags in addition to :data:`FLAGS`.
        otherwise: what happens without the library, for the warning.
    """
    compiler = _compiler()
    if not compiler:
        LOG.warning("no C++ compiler found: %s", otherwise)
        return None
    command = [*compiler, *FLAGS, *flags]
    try:
        folder = cache_directory()
        library = folder / f"{source.stem}-{_fingerprint(command, source)}.so"
        if not _is_valid(library):
            with open(folder / "lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # ranks that start together build once
                if not _is_valid(library):
                    LOG.info("Compiling %s for this CPU (once, up to half a minute)", source.name)
                    _build(command, source, library)
        return ctypes.CDLL(str(library))
    except BuildError as error:
        reason = str(error).splitlines()[0]
        LOG.warning(
            "%s cannot build %s (%s): %s", shlex.join(compiler), source.name, reason, otherwise
        )
    except OSError as error:
        LOG.warning(
            "%s cannot be compiled without a folder for the result (%s; set XDG_CACHE_HOME to a "
            "folder of your own): %s",
            source.name,
            error,
            otherwise,
        )
    return None


def _compiler() -> list[str]:
    """The compiler and its first arguments; CXX may be ``ccache g++``."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    path = shutil.which("g++") or shutil.which("clang++")
    return [path] if path else []


@cache
def compiler_version() -> str | None:
    """The first line of the compiler's ``--version``, None without a compiler."""
    try:
        done = subprocess.run([*_compiler(), "--version"], capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").partition("\n")[0] or None


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
    if not stat.S_ISDIR(status.st_mode) or not _is_private(status):
        raise OSError(f"{folder} is not a folder of this user alone")
    return folder
