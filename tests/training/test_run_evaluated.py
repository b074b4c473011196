"""Runs that are evaluated after training, or with other options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from run_files import result_of

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.evaluation import EvaluationRequest, evaluate_run
from sn_imagenet.runs import FINISHED, NOT_EVALUATED, read_run
from sn_imagenet.training import train


def test_an_evaluation_with_other_options_does_not_complete_a_run(
    composed: Callable[..., ExperimentConfig], tmp_path: Path
) -> None:
    """The training command adds the evaluation that counts, and keeps the others."""
    for part, count in (("train", 24), ("val", 4)):
        for i in range(count):
            file = tmp_path / part / f"class{i % 2}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (8 * i, 0, 0)).save(file)
    run = tmp_path / "run"
    config = composed(
        *("data=imagefolder", "data.image_size=16", "data.resize_size=16", "data.workers=0"),
        *(f"data.{part}={tmp_path / part}" for part in ("train", "val")),
        *("norm=sn", "model=resnet14_mini", "batch=1x8", "trainer.max_steps=2"),
        *(f"run_dir={run}", "evaluate=false"),
    )
    train(config)
    weights = torch.load(run / "final.pt")["model"]
    request = EvaluationRequest({"calibration": {"samples": 16}}, samples=(16, 8), draws=2)
    earlier = evaluate_run(run, request)["evaluations"]
    assert len(earlier) == 5 and read_run(run).state == NOT_EVALUATED
    assert not (run / "batch_average.pt").exists()

    config.evaluate = True
    after = result_of(train(config))
    assert after["evaluations"][:5] == earlier
    assert [e["by"] for e in after["evaluations"][5:]] == ["training"] * 2
    assert read_run(run).state == FINISHED
    assert read_run(run).counted_evaluations["batch_average"] == after["evaluations"][-1]
    assert torch.load(run / "batch_average.pt")["evaluation"] == after["evaluations"][-1]
    assert all(torch.load(run / "final.pt")["model"][name].equal(weights[name]) for name in weights)
