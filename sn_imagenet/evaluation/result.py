"""``result.json``: a number with its provenance (version 2; docs/results.md documents it)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.evaluation.departures import departures, left_out
from sn_imagenet.evaluation.evaluate import Evaluated
from sn_imagenet.runs import RESULT_VERSION, RunDirectory, checkpoint, deviations_from_config


def make_result(
    config: ExperimentConfig,
    *,
    fingerprint: dict[str, Any],
    provenance: dict[str, Any],
    status: str,
    training: dict[str, Any] | None = None,
    evaluations: Sequence[dict[str, Any]] = (),
    importance_weights: list[dict[str, Any]] | None = None,
    diverged: dict[str, Any] | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    """What ``result.json`` holds.

    Args:
        config: that the run was trained with.
        fingerprint: of the data that it was trained with.
        provenance: of its training.
        status: finished, diverged or failed.
        training: how long and how fast the run trained.
        evaluations: their entries, in the order in which they were made.
    """
    return {
        "version": RESULT_VERSION,
        "status": status,
        "error": error,
        "diverged": diverged,
        "cell": {
            "data": config.data.name,
            "model": config.model.name,
            "norm": config.norm.name,
            "batch": config.batch.name,
            "gpus": config.batch.gpus,
            "samples_per_gpu": config.batch.samples_per_gpu,
            "seed": config.seed,
            "norm_args": config.norm.args,
            "test_statistics": config.norm.test_statistics,
        },
        "evaluations": list(evaluations),
        "importance_weights": importance_weights,
        "training": training or {},
        "departures": [*departures(config, fingerprint), *left_out(fingerprint)],
        "provenance": {
            **provenance,
            "data_fingerprint": fingerprint,
            "written_at": now(),
        },
        "config": config.to_dict(),
    }


def signed(
    evaluations: Sequence[Evaluated],
    *,
    weights: dict[str, Any],
    by: str,
    provenance: dict[str, Any] | None = None,
) -> list[Evaluated]:
    """What :func:`~sn_imagenet.evaluation.evaluate.evaluate` returned, with where the weights came
    from and who evaluated them, when.

    Args:
        weights: ``file``, its name in the run directory or its path; ``epoch``, the epochs that
            are complete in it; ``step``, the optimizer steps.
        by: ``training`` or ``evaluate.py``.
        provenance: of the process that evaluated; None: the run's own.
    """
    how = {"checkpoint": weights, "by": by, "at": now(), "provenance": provenance}
    return [replace(made, record={**made.record, **how}) for made in evaluations]


def add_evaluations(
    result: dict[str, Any], directory: RunDirectory, found: Sequence[Evaluated]
) -> dict[str, Any]:
    """``result`` with the records of ``found`` after those that it has. The statistics of the first
    batch average that counts are kept in ``directory``, if they are not yet.

    Raises:
        RunError: they cannot be written.
    """
    config, fingerprint = result["config"], result["provenance"]["data_fingerprint"]
    for made in found:
        if made.statistics is None or directory.batch_average.exists():
            continue
        if not deviations_from_config(made.record, config, fingerprint):
            checkpoint.save_batch_average(directory, made.statistics, made.record)
    return {**result, "evaluations": [*result["evaluations"], *(e.record for e in found)]}


def now() -> str:
    """The time of day as results state it, ISO 8601 with the offset of the zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
