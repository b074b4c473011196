"""``result.json``, the numbers of a run with their provenance (version 2; docs/results.md)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sn_imagenet.evaluation.evaluate import Evaluation
from sn_imagenet.runs import RESULT_VERSION, RunDirectory, checkpoint, deviations_from_config
from sn_imagenet.tasks import Prepared, Task


def make_result(
    prepared: Prepared,
    *,
    status: str,
    training: dict[str, Any] | None = None,
    evaluations: Sequence[dict[str, Any]] = (),
    importance_weights: list[dict[str, Any]] | None = None,
    diverged: dict[str, Any] | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    """The content of ``result.json``.

    Args:
        prepared: the run, with the data and the provenance of its training.
        status: finished, diverged or failed.
        training: its duration and speed.
        evaluations: their records in chronological order.
    """
    config, task, fingerprint = prepared.config, prepared.task, prepared.data.fingerprint
    return {
        "version": RESULT_VERSION,
        "status": status,
        "error": error,
        "diverged": diverged,
        "cell": {
            "data": config.data.name,
            "model": config.model.name,
            "norm": config.norm_label,
            "batch": config.batch.name,
            "gpus": config.batch.gpus,
            "samples_per_gpu": config.batch.samples_per_gpu,
            "seed": config.seed,
            "norm_args": task.norm_args(),
            "test_statistics": config.norm.test_statistics,
            **({"row": config.task["row"]} if config.task.get("row") else {}),
        },
        "score": task.score.to_dict(),
        "evaluations": list(evaluations),
        "importance_weights": importance_weights,
        "training": training or {},
        "departures": all_departures(task, fingerprint),
        "provenance": {**prepared.provenance, "data_fingerprint": fingerprint, "written_at": now()},
        "config": config.to_dict(),
    }


def origin(
    weights: dict[str, Any], by: str, provenance: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Entries of an evaluation's record: what was evaluated, by which program and when.

    Args:
        weights: the checkpoint: ``file``, its name in the run directory or its path; ``epoch``, the
            number of completed epochs; ``step``, the number of optimizer steps.
        by: ``training`` or ``evaluate.py``.
        provenance: of the evaluating process; None if it is that of the run.
    """
    return {"checkpoint": weights, "by": by, "at": now(), "provenance": provenance}


def add_evaluations(
    result: dict[str, Any], directory: RunDirectory, evaluations: Sequence[Evaluation]
) -> dict[str, Any]:
    """``result`` with the records of ``evaluations`` appended.

    The first batch average that was evaluated as the config says is saved in ``directory``, unless
    one is saved there already.

    Raises:
        RunError: the statistics cannot be written.
    """
    config, fingerprint = result["config"], result["provenance"]["data_fingerprint"]
    for evaluation in evaluations:
        if evaluation.statistics is None or directory.batch_average.exists():
            continue
        if not deviations_from_config(evaluation.record, config, fingerprint):
            checkpoint.save_batch_average(
                directory, evaluation.statistics, evaluation.record, result["config"]
            )
    return {**result, "evaluations": [*result["evaluations"], *(e.record for e in evaluations)]}


def now() -> str:
    """The current date and time in ISO 8601 with the UTC offset."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def all_departures(task: Task, data_fingerprint: dict[str, Any]) -> list[dict[str, str]]:
    """The task's departures, and that files of the data are marked as bad, if any."""
    departures = task.departures(data_fingerprint)
    counts = {
        part: len(fingerprint["left_out"])
        for part, fingerprint in data_fingerprint.items()
        if "left_out" in fingerprint
    }
    ours = ", ".join(f"{count} of {part}" for part, count in counts.items())
    if counts:
        departures.append({"item": "files left out", "paper": "none", "ours": ours})
    return departures
