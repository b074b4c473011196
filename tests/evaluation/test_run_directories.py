"""The run directories that ``evaluate.py run=`` finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from sn_imagenet.evaluation import find_run_directories
from sn_imagenet.runs import RunError


def test_an_existing_path_is_not_read_as_a_glob(tmp_path: Path) -> None:
    for name in ("a1", "a[1]", "b", "empty"):
        (tmp_path / name).mkdir()
        if name != "empty":
            (tmp_path / name / "config.yaml").write_text("{}\n")
    assert find_run_directories(f"{tmp_path}/a[1]") == [tmp_path / "a[1]"]
    assert find_run_directories(f"{tmp_path}/a[12]") == [tmp_path / "a1"]
    assert find_run_directories(f"{tmp_path}/*") == [tmp_path / n for n in ("a1", "a[1]", "b")]
    with pytest.raises(RunError, match="no run directory there"):
        find_run_directories(f"{tmp_path}/empty")
