"""The build of the C++ passes: found, cached, or done without."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sn_imagenet.norms import SwitchNorm2d
from sn_imagenet.norms.passes import compiler, cpp, select_backend

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiler.load_library.cache_clear()
    yield
    compiler.load_library.cache_clear()


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


@needs_compiler
def test_builds_once_per_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiler.load_library(cpp.SOURCE) is not None
    built = list((tmp_path / "cache" / "sn_imagenet").iterdir())
    assert len(built) == 1 and built[0].suffix == ".so"
    written = built[0].stat().st_mtime_ns
    compiler.load_library.cache_clear()
    assert compiler.load_library(cpp.SOURCE) is not None
    assert list((tmp_path / "cache" / "sn_imagenet").iterdir()) == built
    assert built[0].stat().st_mtime_ns == written

    # Another processor may not know this one's instructions.
    monkeypatch.setattr(compiler, "_processor", lambda: "another")
    compiler.load_library.cache_clear()
    assert compiler._fingerprint("g++", cpp.SOURCE) not in built[0].name


@needs_compiler
def test_an_unwritable_cache_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert compiler.cache_directory() != blocked
    assert compiler.cache_directory().is_dir()


def test_refuses_what_it_cannot_take() -> None:
    half = torch.randn(2, 3, 4, 4, dtype=torch.float16)
    assert select_backend(half).name == "native"
    with pytest.raises(ValueError, match=r"backend='cpp' cannot take a torch.float16"):
        select_backend(half, "cpp")
    with pytest.raises(ValueError, match=r"backend='triton' cannot take .* CUDA"):
        select_backend(half, "triton")
