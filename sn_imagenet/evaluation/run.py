"""Evaluate runs that are already trained, from their directories."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from sn_imagenet.config import from_dict
from sn_imagenet.evaluation.evaluate import described_weights, evaluate
from sn_imagenet.evaluation.prepare import prepare, require_same_data
from sn_imagenet.evaluation.result import add_evaluations, make_result, signed
from sn_imagenet.replicas import from_rank_0, join, rank, say, together
from sn_imagenet.runs import RunDirectory, RunError, checkpoint


def find_run_directories(pattern: str) -> list[Path]:
    """The run directories that a path or a glob names, sorted.

    Raises:
        RunError: there is none.
    """
    if RunDirectory(Path(pattern)).config.exists():
        return [Path(pattern)]  # of that very name, whatever a glob makes of it
    found = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
    runs = [path for path in found if RunDirectory(path).config.exists()]
    if not runs:
        raise RunError(
            f"run={pattern}: no run directory there (one holds a config.yaml); expected a path "
            "such as runs/digits/resnet50_mini/sn/8x2/seed0, or a glob in quotes"
        )
    return runs


def evaluate_run(path: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Calibrate and evaluate a trained run, and append what comes of it to its ``result.json``.
    What the training wrote there stays as it is.

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
        try:
            training, trained_by = trained["training"], trained["provenance"]
            fingerprint = trained["data_fingerprint"]
            steps = training["steps"]
            weights = {"epoch": steps // training["steps_per_epoch"], "step": steps}
            prepared.network.load_state_dict(trained["model"])
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
            raise RunError(
                f"{directory.final} is not what this run trained: "
                f"{reason.splitlines()[0]}; restore it, or remove it and "
                f"{directory.result.name} and start the run again"
            ) from error
        require_same_data(path, fingerprint, prepared.data)
    config = from_dict(own)
    with together():
        if rank() == 0:
            directory.claim(config)
    try:
        found = signed(
            evaluate(prepared),
            weights={"file": directory.final.name, **weights},
            by="evaluate.py",
            provenance=prepared.provenance,
        )
        result: dict[str, Any] = {}
        with together():
            if rank() == 0:
                # Read anew, now that nobody else writes here.
                result = directory.read_result() or {}
                if result.get("status") != "finished":
                    result = make_result(
                        config,
                        status="finished",
                        training=training,
                        provenance=trained_by,
                        fingerprint=fingerprint,
                        importance_weights=described_weights(prepared.network),
                    )
                result = add_evaluations(result, directory, found)
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
