"""Evaluation and calibration report their progress."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest
import torch

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.evaluation import progress
from sn_imagenet.evaluation.calibration import eval_batch_size


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_are_printed_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.progress_bar(range(4), "evaluation", every_s=0)) == [0, 1, 2, 3]
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ETA")[0] for line in lines] == [
        f"evaluation  batch {done}/4" for done in (1, 2, 3)
    ]
    assert list(progress.progress_bar(range(4), "evaluation", every_s=1e9)) == [0, 1, 2, 3]
    assert capsys.readouterr().out == ""


def test_on_a_terminal_progress_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress.progress_bar(range(3), "calibration")) == [0, 1, 2]
    assert "calibration   0%" in sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "ETA" in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_other_ranks_print_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert list(progress.progress_bar(range(3), "evaluation", every_s=0)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("device", "image_size", "eval_batch", "expected"),
    [
        ("cuda", 224, None, 256),
        ("cpu", 224, None, 41),
        ("cpu", 16, None, 256),
        ("cpu", 4000, None, 1),
        ("cpu", 224, 7, 7),
    ],
)
def test_the_batch_size_depends_on_the_device(
    composed: Callable[..., ExperimentConfig],
    device: str,
    image_size: int,
    eval_batch: int | None,
    expected: int,
) -> None:
    config = composed(f"data.image_size={image_size}", f"data.resize_size={image_size}")
    config.trainer.eval_batch_size = eval_batch
    assert eval_batch_size(config, torch.device(device)) == expected
