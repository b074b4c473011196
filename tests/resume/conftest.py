"""Runs that can be paused, so that a test can disturb them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from run_processes import ROOT, Pauses


@pytest.fixture
def pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pauses:
    monkeypatch.setenv("PAUSES", str(tmp_path / "pauses"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
    return Pauses(tmp_path / "pauses")
