"""A run killed at every stage equals the uninterrupted one bit for bit."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import first_evaluations
from run_processes import finish, start, steps

RATES = {"images_per_s", "data_wait_pct"}
STAGES = ("claim", "step", "save", "step", "save", "evaluation", "result")


def outcome(run: Path) -> tuple[Any, ...]:
    """Rows without rates, evaluations, and weights of a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "finished"
    model = torch.load(run / "final.pt", weights_only=True)["model"]
    return (
        [{key: value for key, value in row.items() if key not in RATES} for row in rows],
        first_evaluations(result),
        {name: tensor.tolist() for name, tensor in model.items()},
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [("norm=sn",), ("norm=bn", "protocol=official_code")])
def test_a_run_killed_at_every_stage_equals_the_uninterrupted_one(tmp_path, options):
    # A checkpoint every 0.2 s, so that a kill can come while one is written.
    short = (*options, "trainer.epochs=3", "checkpoint.minutes=0.0033", "calibration.samples=256")
    whole, run = tmp_path / "whole", tmp_path / "run"
    output, code = finish(start(whole, *short))
    assert code == 0, output
    rng = random.Random(0)
    for stage in STAGES:
        step = len(steps(run)) + rng.randint(1, 15)
        reached = {
            "claim": (run / "config.yaml").exists,
            "step": lambda step=step: len(steps(run)) >= step,
            "save": lambda: any(run.glob("newest.pt*")),
            "evaluation": (run / "final.pt").exists,
            "result": lambda: any(run.glob("result.json*")),
        }[stage]
        for left in run.glob("newest.pt*"):
            left.unlink()
        process = start(run, *short)
        while not reached() and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        output, _ = finish(process)
        assert "Traceback" not in output and "error" not in output, (stage, output)
    output, code = finish(start(run, *short))
    assert code == 0, output
    assert outcome(run) == outcome(whole)
