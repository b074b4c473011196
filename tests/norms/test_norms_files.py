"""How many files a reader opens to follow a forward pass of SN on a CPU."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType

import pytest
import torch
from norm_reference import BACKENDS

import sn_imagenet
from sn_imagenet.norms import SwitchNorm2d
from sn_imagenet.norms.kernels.cpp import SOURCE

PACKAGE = str(Path(sn_imagenet.__file__).parent)


def compiled_files(source: Path) -> set[Path]:
    """A C++ file with the files of this project that it includes, directly or not."""
    names = re.findall(r'^#include "(.+)"', source.read_text(), re.MULTILINE)
    return {source}.union(*(compiled_files(source.with_name(name)) for name in names))


@pytest.mark.skipif("cpp" not in BACKENDS, reason="no C++ compiler")
@pytest.mark.parametrize("training", [True, False])
def test_the_forward_of_sn_passes_through_at_most_eight_files(training: bool) -> None:
    layer = SwitchNorm2d(8).train(training)
    x = torch.randn(4, 8, 5, 5, requires_grad=True)
    layer(x)  # compiles
    called: set[Path] = set()

    def trace(frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            called.add(Path(frame.f_code.co_filename))

    sys.setprofile(trace)
    try:
        layer(x)
    finally:
        sys.setprofile(None)
    assert SOURCE.with_name("cpp.py") in called, "the compiled operator was not used"
    files = called | compiled_files(SOURCE)
    assert len(files) <= 8, sorted(file.name for file in files)
