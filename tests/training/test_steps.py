"""The loop at its edges: an interrupt at the last step of an epoch, a loss that is not finite."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from run_files import result_of

from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.runs import checkpoint
from sn_imagenet.training import Stepper, train

TINY = ("data=digits", "model=resnet14_mini", "batch=8x2", "norm=sn", "evaluate=false")


def rows_of(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in row.items() if k not in ("images_per_s", "data_wait_pct")} for row in rows
    ]


@pytest.mark.slow
def test_a_run_interrupted_at_the_last_step_of_an_epoch_resumes_with_its_rate(
    composed, tmp_path, monkeypatch
):
    """The report of that epoch is written by the resumed run, which trains no step before it."""
    options = (*TINY, "data.subset=0.1", "trainer.max_steps=12")  # nine steps an epoch
    train(composed(*options, f"run_dir={tmp_path / 'whole'}"))
    config = composed(*options, f"run_dir={tmp_path / 'interrupted'}")
    real = Stepper.forward_backward

    def interrupt(stepper, batch, step, flags=(), phase=""):
        outcome = real(stepper, batch, step, flags, phase)
        return replace(outcome, flags=(1.0, 0.0)) if step == 8 else outcome

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "forward_backward", interrupt)
        with pytest.raises(SystemExit):
            train(config)
    train(config)
    rows = rows_of(tmp_path / "interrupted")
    assert rows == rows_of(tmp_path / "whole")
    assert rows[0]["step"] == 9 and rows[0]["lr"] > 0


@pytest.mark.slow
def test_a_diverged_run_ends_before_the_update_of_that_step(composed, tmp_path, monkeypatch):
    real, calls = ImageBatch.to, []

    def to(batch, device):
        calls.append(None)
        images, labels = real(batch, device)
        return ImageBatch(images * math.nan if len(calls) == 4 else images, labels)

    monkeypatch.setattr(ImageBatch, "to", to)
    options = ("trainer.max_steps=9", "trainer.log_every=2", "checkpoint.minutes=0")
    run = tmp_path / "run"
    result = result_of(train(composed(*TINY, *options, f"run_dir={run}")))
    assert len(calls) == 4
    assert result["status"] == "diverged" and result["training"]["steps"] == 3
    assert result["diverged"]["step"] == 4 and result["diverged"]["cause"] == "the loss is nan"
    assert math.isfinite(result["diverged"]["last_finite_loss"])
    assert [row["step"] for row in rows_of(run)] == [2, 3]
    state = checkpoint.load(run / "last.pt")
    assert state["step"] == 3 and all(v.isfinite().all() for v in state["model"].values())
