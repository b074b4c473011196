"""Compares the outcomes of two runs of the same experiment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from run_files import first_evaluations


def assert_same_outcome(one: Path, other: Path) -> list[dict[str, Any]]:
    """Require equal weights and evaluations; return both results."""
    models = [torch.load(run / "final.pt", weights_only=True)["model"] for run in (one, other)]
    results = [json.loads((run / "result.json").read_text()) for run in (one, other)]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[1])
    assert first_evaluations(results[0]) == first_evaluations(results[1])
    return results
