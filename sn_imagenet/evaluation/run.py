"""Evaluate runs that are already trained, from their directories."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from sn_imagenet.config import from_dict
from sn_imagenet.errors import UserError
from sn_imagenet.evaluation.evaluate import described_weights, evaluate
from sn_imagenet.evaluation.prepare import Prepared, prepare
from sn_imagenet.evaluation.result import make_result
from sn_imagenet.replicas import from_rank_0, join, rank, say, together
from sn_imagenet.runs import RunDirectory, RunError, checkpoint


def find_run_directories(pattern: str) -> list[Path]:
    """The run directories that a path or a glob names, sorted.

    Raises:
        RunError: there is none.
    """
    found = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
    runs = [path for path in found if RunDirectory(path).config.exists()]
    if not runs:
        raise RunError(
            f"run={pattern}: no run directory there (one holds a config.yaml); expected a path "
            "such as runs/digits/resnet50_mini/sn/8x2/seed0, or a glob in quotes"
        )
    return runs


def evaluate_run(path: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Calibrate and evaluate a trained run, and write its ``result.json`` anew.

    Args:
        path: the run's directory.
        overrides: values that replace the run's own, as nested dicts; None leaves the run's.

    Returns:
        What ``result.json`` now holds; that of a diverged run as it is.

    Raises:
        UserError: the run is not trained to its end, or its data is not the same any more.
    """
    join()
    directory = RunDirectory(path)
    with together():
        before = directory.read_result()
        if before is not None and before["status"] == "diverged":
            say(f"{path}: diverged, there is nothing to evaluate")
            return before
        if not directory.final.exists():
            raise RunError(
                f"{path} has no {directory.final.name}: it is not trained to its end; continue it "
                "with the command that started it"
            )
        trained = checkpoint.load(directory.final)
        own = directory.read_config()
        prepared = prepare(from_dict(_replaced(own, overrides)))
        _require_same_data(path, trained, prepared)
        prepared.network.load_state_dict(trained["model"])
    with together():
        if rank() == 0:
            directory.claim(from_dict(own))  # however it is evaluated, it stays this experiment's
    try:
        result = make_result(
            prepared,
            status="finished",
            training=trained["training"],
            trained_by=trained["provenance"],
            evaluations=evaluate(prepared),
            importance_weights=described_weights(prepared.network),
        )
        if rank() == 0:
            directory.write_result(result)
    finally:
        if rank() == 0:
            directory.release()
    return from_rank_0(result)


def _replaced(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in overrides.items():
        if isinstance(value, dict):
            merged[key] = _replaced(merged[key], value)
        elif value is not None:
            merged[key] = value
    return merged


def _require_same_data(path: Path, trained: dict[str, Any], prepared: Prepared) -> None:
    then, now = trained["data_fingerprint"], prepared.data.fingerprint
    changed = [part for part in then if then[part] != now.get(part)]
    if changed:
        raise UserError(
            f"{path} was trained with other data: the {' and '.join(changed)} images are not "
            f"those of the run ({then[changed[0]]['samples']} then, "
            f"{now[changed[0]]['samples']} now, or other files); point data.root (data.train, "
            "data.val) to the same data"
        )
