"""Builds a C++ source of this package once per machine and loads it.

The sources need no headers but the standard library's, so that a build takes seconds and serves
every shape, layout and dtype. OpenMP comes from the libgomp that PyTorch has already loaded: one
pool of threads for both.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

LOG = logging.getLogger(__name__)
# Not -ffast-math: NaN and infinity must come through, and it would change the process's rounding.
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17", "-fno-math-errno")


@cache
def load_library(source: Path) -> ctypes.CDLL | None:
    """``source``, compiled, or None, said once in the log, where they cannot be built."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        LOG.warning("no C++ compiler found: normalisation uses PyTorch's own operators on the CPU")
        return None
    try:
        return ctypes.CDLL(str(_build(compiler, source)))
    except (OSError, subprocess.SubprocessError) as error:
        LOG.warning(
            "%s cannot build %s (%s): normalisation uses PyTorch's own operators",
            compiler,
            source.name,
            str(error).splitlines()[0],
        )
        return None


def _build(compiler: str, source: Path) -> Path:
    library = cache_directory() / f"{source.stem}-{_fingerprint(compiler, source)}.so"
    if not library.exists():
        # Ranks that start together may all build; each moves a whole file into place.
        handle, unfinished = tempfile.mkstemp(suffix=".so", dir=library.parent)
        os.close(handle)
        try:
            command = [compiler, *FLAGS, str(source), "-o", unfinished]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            os.replace(unfinished, library)
        except BaseException:
            os.unlink(unfinished)
            raise
    return library


def _fingerprint(compiler: str, source: Path) -> str:
    """Of all that decides the machine code; a home directory may serve machines of many kinds."""
    digest = hashlib.sha256(source.read_bytes())
    digest.update(repr((compiler, FLAGS, platform.machine(), _processor())).encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base) / "sn_imagenet"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="sn_imagenet-"))
    return directory if os.access(directory, os.W_OK) else Path(tempfile.mkdtemp())
