"""The build of the C++ kernels: compilers, the cache of built libraries, and the fallback."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sn_imagenet.native import compiler
from sn_imagenet.norms import SwitchNorm2d
from sn_imagenet.norms.kernels import cpp, select_backend

TINY_TEXT = 'extern "C" int answer() { return 42; }'
TINY = Path()  # a source that compiles fast; the fixture writes it
OTHER_USER = 54321
# Without the package and torch, whose import takes seconds.
LOAD = """
import importlib.util, sys
from pathlib import Path
path, source = sys.argv[1:]
spec = importlib.util.spec_from_file_location("compiler", path)
compiler = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compiler)
"""
ANSWER = LOAD + "print(compiler.load_library(Path(source), otherwise='').answer(), end='')"

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys.modules[__name__], "TINY", tmp_path / "tiny.cpp")
    TINY.write_text(TINY_TEXT)
    for cached in (compiler.load_library, cpp.is_built):
        cached.cache_clear()
    yield
    for cached in (compiler.load_library, cpp.is_built):
        cached.cache_clear()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "sn_imagenet"


def _start(program: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", program, compiler.__file__, str(TINY)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _run_in_new_process(program: str) -> str:
    process = _start(program)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def _require_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files to another user")


@pytest.mark.parametrize("fault", ["missing", "failing"])
def test_without_a_compiler_the_native_operators_run_with_one_warning(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if fault == "missing":
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", "")
    else:
        monkeypatch.setenv("CXX", "false")
    x = torch.randn(4, 6, 3, 3, requires_grad=True)
    layer = SwitchNorm2d(6)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            layer(x).sum().backward()
    assert select_backend(x).name == "native"
    assert len(caplog.records) == 1
    assert "PyTorch's own operators" in caplog.text
    with pytest.raises(ValueError, match=r"backend='cpp' cannot take .* needs a C\+\+ compiler"):
        select_backend(x, "cpp")


def _load() -> ctypes.CDLL | None:
    compiler.load_library.cache_clear()
    return compiler.load_library(TINY, otherwise="there is no answer")


@needs_compiler
def test_a_library_is_built_once_per_machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _load() is not None
    (built,) = cache.glob("*.so")
    assert {path.name for path in cache.iterdir()} == {built.name, "lock"}
    assert cache.stat().st_mode & 0o777 == 0o700
    assert built.stat().st_mode & 0o777 == 0o600
    written = built.stat().st_mtime_ns
    assert _load() is not None
    assert [*cache.glob("*.so")] == [built]
    assert built.stat().st_mtime_ns == written

    # Another processor may lack this processor's instructions.
    monkeypatch.setattr(compiler, "_processor", lambda: "another")
    assert compiler._fingerprint(compiler._compiler(), TINY) not in built.name


@needs_compiler
@pytest.mark.parametrize("kept", [0, 1, 0.5, 0.99], ids=["empty", "a byte", "half", "nearly all"])
def test_a_damaged_library_is_rebuilt(kept: float, cache: Path) -> None:
    """In another process, because loading a truncated library would kill this one."""
    _run_in_new_process(ANSWER)
    (built,) = cache.glob("*.so")
    whole = built.read_bytes()
    built.write_bytes(whole[: int(kept if kept == 1 else kept * len(whole))])
    assert _run_in_new_process(ANSWER) == "42"
    assert built.stat().st_size == len(whole)


@needs_compiler
@pytest.mark.parametrize("fault", ["writable", "link", "others"])
def test_a_library_that_another_user_may_have_written_is_rebuilt(
    fault: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _load() is not None
    (built,) = cache.glob("*.so")
    inode = built.stat().st_ino
    if fault == "writable":
        built.chmod(0o666)
    elif fault == "link":
        built.rename(cache / "planted")
        built.symlink_to("planted")
    else:
        _require_root()
        os.chown(built, OTHER_USER, -1)
    assert not compiler._is_valid(built)
    assert _load() is not None
    assert compiler._is_valid(built)
    assert built.lstat().st_ino != inode


@needs_compiler
@pytest.mark.parametrize("fault", ["a file", "writable by all", "another user's", "no home"])
def test_without_a_private_cache_nothing_is_built_or_loaded(
    fault: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert _load() is not None
    reason = {
        "a file": "File exists",
        "writable by all": "writable by everybody",
        "another user's": "not a folder of this user alone",
        "no home": "no home directory",
    }[fault]
    if fault == "a file":
        cache.rename(cache.with_name("moved"))
        cache.write_text("")
    elif fault == "writable by all":
        cache.parent.chmod(0o777)
    elif fault == "another user's":
        _require_root()
        os.chown(cache, OTHER_USER, -1)
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", _no_home)
    with caplog.at_level(logging.WARNING):
        assert _load() is None
    (warning,) = caplog.messages
    assert reason in warning
    assert "set XDG_CACHE_HOME" in warning and warning.endswith("there is no answer")


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_compiler_that_writes_nothing_is_a_warning(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "true")
    with caplog.at_level(logging.WARNING):
        assert _load() is None
    assert "wrote nothing" in caplog.text
    assert [path.name for path in cache.iterdir()] == ["lock"]


@needs_compiler
def test_a_compiler_may_have_arguments(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "env LC_ALL=C g++")
    assert _load() is not None


@needs_compiler
def test_processes_that_start_together_build_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    counting = tmp_path / "counting"
    counting.write_text(f'#!/bin/sh\necho built >> {count}\nsleep 1\nexec g++ "$@"\n')
    counting.chmod(0o755)
    monkeypatch.setenv("CXX", str(counting))
    processes = [_start(ANSWER) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == ["42"] * 3
    assert count.read_text() == "built\n"


def test_a_backend_rejects_tensors_that_it_does_not_support() -> None:
    half = torch.randn(2, 3, 4, 4, dtype=torch.float16)
    assert select_backend(half).name == "native"
    with pytest.raises(ValueError, match=r"backend='cpp' cannot take a torch.float16"):
        select_backend(half, "cpp")
    with pytest.raises(ValueError, match=r"backend='triton' cannot take .* CUDA"):
        select_backend(half, "triton")
