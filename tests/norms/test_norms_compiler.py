"""The build of the C++ passes: found, cached, or done without."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sn_imagenet.norms import SwitchNorm2d
from sn_imagenet.norms.kernels import compiler, select_backend

TINY_TEXT = 'extern "C" int answer() { return 42; }'
TINY = Path()  # a source that is compiled at once; made by the fixture
OTHER_USER = 54321
# Without torch, which takes seconds; the file needs nothing of its package.
LOAD = """
import importlib.util, os, sys, tempfile
from pathlib import Path
path, source = sys.argv[1:]
spec = importlib.util.spec_from_file_location("compiler", path)
compiler = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compiler)
"""
ANSWER = LOAD + "print(compiler.load_library(Path(source)).answer(), end='')"
ANSWER_WITHOUT_HOME = (
    LOAD
    + f"""
text = Path(source).read_text()
os.setuid({OTHER_USER})
del os.environ["XDG_CACHE_HOME"], os.environ["HOME"]
with tempfile.TemporaryDirectory(dir="/tmp") as folder:
    tempfile.tempdir = folder
    own = Path(folder) / "tiny.cpp"
    own.write_text(text)
    print(compiler.load_library(own).answer(), end="")
    assert os.listdir(folder) == ["tiny.cpp"]
"""
)

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys.modules[__name__], "TINY", tmp_path / "tiny.cpp")
    TINY.write_text(TINY_TEXT)
    compiler.load_library.cache_clear()
    compiler._warn_without_cache.cache_clear()
    yield
    compiler.load_library.cache_clear()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "sn_imagenet"


def _started(program: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", program, compiler.__file__, str(TINY)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _in_a_new_process(program: str) -> str:
    process = _started(program)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    return said


def _require_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files to another user")


@pytest.mark.parametrize("fault", ["missing", "failing"])
def test_without_a_compiler_the_native_operators_serve_and_say_so_once(
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
    return compiler.load_library(TINY)


@needs_compiler
def test_builds_once_per_machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _load() is not None
    (built,) = cache.glob("*.so")
    assert {path.name for path in cache.iterdir()} == {built.name, "lock"}
    assert cache.stat().st_mode & 0o777 == 0o700
    assert built.stat().st_mode & 0o777 == 0o600
    written = built.stat().st_mtime_ns
    assert _load() is not None
    assert [*cache.glob("*.so")] == [built]
    assert built.stat().st_mtime_ns == written

    # Another processor may not know this one's instructions.
    monkeypatch.setattr(compiler, "_processor", lambda: "another")
    assert compiler._fingerprint(compiler._compiler(), TINY) not in built.name


@needs_compiler
@pytest.mark.parametrize("left", [0, 1, 0.5, 0.99], ids=["empty", "a byte", "half", "nearly all"])
def test_a_damaged_library_is_built_again(left: float, cache: Path) -> None:
    """In another process: loading a truncated one would be the end of it."""
    _in_a_new_process(ANSWER)
    (built,) = cache.glob("*.so")
    whole = built.read_bytes()
    built.write_bytes(whole[: int(left if left == 1 else left * len(whole))])
    assert _in_a_new_process(ANSWER) == "42"
    assert built.stat().st_size == len(whole)


@needs_compiler
@pytest.mark.parametrize("fault", ["writable", "link", "others"])
def test_a_library_that_another_may_have_written_is_not_loaded(
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
@pytest.mark.parametrize("fault", ["a file", "writable by all", "another user's"])
def test_a_cache_that_cannot_be_trusted_is_done_without_and_said_once(
    fault: str,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    reason = {
        "a file": "File exists",
        "writable by all": "writable by everybody",
        "another user's": "belongs to another user",
    }[fault]
    if fault == "a file":
        cache.parent.write_text("")
    else:
        cache.mkdir(parents=True)
        if fault == "writable by all":
            cache.parent.chmod(0o777)
        else:
            _require_root()
            os.chown(cache, OTHER_USER, -1)
    with caplog.at_level(logging.WARNING):
        assert _load() is not None
        assert _load() is not None
    assert len(caplog.records) == 1
    assert "built at each start" in caplog.text and reason in caplog.text
    assert [*temporary.iterdir()] == []
    assert not cache.is_dir() or [*cache.iterdir()] == []


@needs_compiler
def test_a_user_without_entry_and_home_builds_at_each_start() -> None:
    _require_root()
    said = _in_a_new_process(ANSWER_WITHOUT_HOME)
    assert said.endswith("42")
    assert "no home directory" in said


def test_a_compiler_that_writes_nothing_is_told(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "true")
    with caplog.at_level(logging.WARNING):
        assert _load() is None
    assert "wrote nothing" in caplog.text
    assert [path.name for path in cache.iterdir()] == ["lock"]


@needs_compiler
def test_a_compiler_may_be_several_words(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    together = [_started(ANSWER) for _ in range(3)]
    assert [process.communicate()[0] for process in together] == ["42"] * 3
    assert count.read_text() == "built\n"


def test_refuses_what_it_cannot_take() -> None:
    half = torch.randn(2, 3, 4, 4, dtype=torch.float16)
    assert select_backend(half).name == "native"
    with pytest.raises(ValueError, match=r"backend='cpp' cannot take a torch.float16"):
        select_backend(half, "cpp")
    with pytest.raises(ValueError, match=r"backend='triton' cannot take .* CUDA"):
        select_backend(half, "triton")
