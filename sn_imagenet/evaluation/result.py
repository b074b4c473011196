"""``result.json``: a number with its provenance (version 1; docs/results.md documents it)."""

from __future__ import annotations

import time
from typing import Any

from sn_imagenet.evaluation.departures import departures, left_out
from sn_imagenet.evaluation.prepare import Prepared
from sn_imagenet.runs import RESULT_VERSION


def make_result(
    prepared: Prepared,
    *,
    status: str,
    training: dict[str, Any] | None = None,
    evaluations: dict[str, dict[str, Any]] | None = None,
    importance_weights: list[dict[str, Any]] | None = None,
    trained_by: dict[str, Any] | None = None,
    diverged: dict[str, Any] | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    """What ``result.json`` holds.

    Args:
        status: finished, diverged or failed.
        training: how long and how fast the run trained.
        trained_by: the provenance of the training, where this process only evaluates.
    """
    config = prepared.config
    here, fingerprint = prepared.provenance, prepared.data.fingerprint
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
        "evaluations": evaluations or {},
        "importance_weights": importance_weights,
        "training": training or {},
        "departures": [*departures(config, fingerprint), *left_out(fingerprint)],
        "provenance": {
            **(trained_by or here),
            "evaluated_by": here if trained_by else None,
            "data_fingerprint": fingerprint,
            "written_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
        "config": config.to_dict(),
    }
