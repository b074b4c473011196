"""The loop at its edges: an interrupt at the last step of an epoch, a loss that is not finite."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from run_files import result_of

from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.runs import checkpoint
from sn_imagenet.training import Stepper, step_graph, train
from sn_imagenet.training import stepper as stepper_module

TINY = ("data=digits", "model=resnet14_mini", "batch=8x2", "norm=sn", "evaluate=false")


def rows_of(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in row.items() if k not in ("images_per_s", "data_wait_pct")}
        for row in rows
        if row["kind"] != "run"
    ]


@pytest.fixture(params=[False, True], ids=["eager", "graph"])
def graph(request, monkeypatch):
    """Whether steps run as graphs. On the CPU a graph is what it would have captured."""
    monkeypatch.setattr(stepper_module, "require_graph", lambda *_: None)
    monkeypatch.setattr(step_graph, "capture", lambda function: function)
    return request.param


@pytest.mark.slow
def test_a_run_interrupted_at_the_last_step_of_an_epoch_resumes_with_its_rate(
    graph, composed, tmp_path, monkeypatch
):
    """The report of that epoch is written by the resumed run, which trains no step before it."""
    options = (*TINY, "data.subset=0.1", "trainer.max_steps=12")  # nine steps an epoch
    train(composed(*options, f"run_dir={tmp_path / 'whole'}"))
    path = f"run_dir={tmp_path / 'interrupted'}"
    config = composed(*options, path, f"trainer.graph={graph}")
    real = Stepper._outcome

    def interrupt(stepper, step, totals):
        outcome = real(stepper, step, totals)
        return replace(outcome, flags=(1.0, 0.0, 0.0)) if step == 8 else outcome

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "_outcome", interrupt)
        with pytest.raises(SystemExit):
            train(config)
    train(config)
    rows = rows_of(tmp_path / "interrupted")
    assert rows == rows_of(tmp_path / "whole")
    assert rows[0]["step"] == 9 and rows[0]["lr"] > 0


@pytest.mark.slow
def test_a_diverged_run_ends_before_the_update_of_that_step(graph, composed, tmp_path, monkeypatch):
    """A graph learns of it one step late; a checkpoint waits for the steps that run."""
    real, calls = ImageBatch.to, []

    def to(batch, device):
        calls.append(None)
        images, labels = real(batch, device)
        return ImageBatch(images * math.nan if len(calls) == 6 else images, labels)

    monkeypatch.setattr(ImageBatch, "to", to)
    options = ("trainer.max_steps=9", "trainer.log_every=2", "checkpoint.minutes=0")
    options += (f"trainer.graph={graph}",)
    run = tmp_path / "run"
    result = result_of(train(composed(*TINY, *options, f"run_dir={run}")))
    assert len(calls) == 6
    assert result["status"] == "diverged" and result["training"]["steps"] == 5
    assert result["diverged"]["step"] == 6 and result["diverged"]["cause"] == "the loss is nan"
    assert math.isfinite(result["diverged"]["last_finite_loss"])
    assert [row["step"] for row in rows_of(run)] == [2, 4, 5]
    state = checkpoint.load(run / "last.pt")
    assert state["step"] == 4 + (not graph) and all(
        v.isfinite().all() for v in state["model"].values()
    )
