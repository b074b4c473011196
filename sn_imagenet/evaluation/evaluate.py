"""Evaluations of a network: by moving and batch average, or by per-sample statistics."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sn_imagenet.data.seeding import seeded_pass
from sn_imagenet.distributed import (
    autocast_for,
    print_rank0,
    rank,
    samples_that_share_statistics,
    world_size,
)
from sn_imagenet.errors import ConfigError
from sn_imagenet.evaluation.calibration import Samples, calibrate, eval_batch_size
from sn_imagenet.evaluation.progress import progress_bar
from sn_imagenet.models import layer_positions
from sn_imagenet.norms import (
    StoredStatistics,
    evalnorm,
    importance_weights,
    set_replicas,
    stored_statistics,
)
from sn_imagenet.norms.control import stores_statistics
from sn_imagenet.runs.evaluations import EVALNORM
from sn_imagenet.tasks import Evaluator, Prepared


def validate(prepared: Prepared, evaluator: Evaluator | None = None) -> dict[str, Any]:
    """Evaluate the network with its current statistics.

    Returns the numbers of the task's evaluator and the kind of ``statistics``. ``evaluator`` is the
    one to use; by default a new one.
    """
    config, network, device = prepared.config, prepared.network, prepared.device
    network.eval()
    set_replicas(network)
    size = eval_batch_size(config, device)
    if evaluator is None:
        evaluator = prepared.task.evaluator(prepared.data, device, size, {})
    batches = prepared.task.evaluation_batches(prepared.data, size, device)
    autocast = autocast_for(config.trainer.precision, device)

    def forward(*inputs: Any) -> Any:
        with autocast():
            return network(*inputs)

    with torch.no_grad():
        for number, batch in enumerate(progress_bar(batches, "evaluation")):
            key = config.seed, number * world_size() + rank()
            with seeded_pass(prepared.task.replica_by_replica, device, "evaluation", *key):
                evaluator.update(forward, batch)
        evaluator.gather()
    kind = "moving_average" if stores_statistics(network) else "sample"
    numbers = evaluator.finish()
    nonfinite = [k for k, v in numbers.items() if isinstance(v, float) and not math.isfinite(v)]
    if nonfinite:
        print_rank0(f"warning: {', '.join(nonfinite)} of this evaluation is not finite")
    return {"statistics": kind, **numbers, **dict.fromkeys(nonfinite)}


@dataclass(frozen=True)
class Evaluation:
    """An evaluation. ``record``: its entry in ``result.json``. ``statistics``: the batch average
    that was used, None for the network's own statistics. ``evaluator``: holds what the requested
    files need."""

    record: dict[str, Any]
    statistics: StoredStatistics | None = None
    evaluator: Evaluator | None = None


def evaluate(
    prepared: Prepared,
    *,
    samples: Sequence[Samples] | None = None,
    draws: int = 1,
    artifacts: Mapping[str, str] | None = None,
    origin: Mapping[str, Any] | None = None,
    statistics: str | None = None,
) -> list[Evaluation]:
    """Evaluate a network with each kind of statistics that it can use.

    These are ``moving_average`` and ``batch_average`` for a method that stores statistics, else
    ``sample``. Each record is what :func:`validate` returns, plus ``calibration``: how the batch
    average was computed, or null; ``precision``; and ``data``: the name of the data and the
    fingerprint of the validation images.

    Args:
        samples: the sample counts of the batch averages, one evaluation for each, from one pass
            over the training samples; None for the config's.
        draws: how often to draw the samples, with the config's seed and the seeds after it.
        artifacts: files to write besides the numbers, by kind.
        origin: further entries of each record, see :func:`~sn_imagenet.evaluation.origin`.
        statistics: ``evalnorm`` for this evaluation of batch norm alone, with weight 1/B for the
            sample's own statistics and B the samples that share statistics in training.

    Raises:
        ConfigError: ``evalnorm`` of a network without batch norm.
    """
    config, network = prepared.config, prepared.network

    def measure(calibration: dict[str, Any] | None, used: StoredStatistics | None) -> Evaluation:
        size = eval_batch_size(config, prepared.device)
        evaluator = prepared.task.evaluator(prepared.data, prepared.device, size, artifacts or {})
        record = {
            **validate(prepared, evaluator),
            "calibration": calibration,
            "precision": config.trainer.precision,
            "data": {"name": config.data.name, "val": prepared.data.fingerprint.get("val")},
            **(origin or {}),
        }
        if calibration:
            record["statistics"] = "batch_average"
        return Evaluation(record, used, evaluator)

    if statistics == EVALNORM:
        weight = 1 / samples_that_share_statistics(network, config.batch)
        try:
            with evalnorm(network, weight):
                evaluation = measure(None, None)
        except ValueError as error:
            raise ConfigError(f"statistics={EVALNORM}: {error}") from error
        record = {**evaluation.record, "statistics": EVALNORM, "weight_of_sample": weight}
        return [replace(evaluation, record=record)]
    evaluations = [measure(None, None)]
    calibrates = prepared.task.calibrates and stores_statistics(network)
    for draw in range(draws if calibrates else 0):
        seed = config.calibration.seed + draw
        for average, calibration in calibrate(prepared, samples, seed):
            with stored_statistics(network, average):
                evaluations.append(measure(calibration, average))
    return evaluations


def validate_calibrated(prepared: Prepared) -> dict[str, Any]:
    """Evaluate the network with its batch average, without changing the network.

    Returns what :func:`validate` returns, plus ``calibration`` and the ``seconds`` it took.
    """
    start = time.perf_counter()
    ((statistics, calibration),) = calibrate(prepared)
    seconds = time.perf_counter() - start
    with stored_statistics(prepared.network, statistics):
        counts = validate(prepared)
    origin = {"calibration": calibration, "seconds": round(seconds, 3)}
    return {**counts, "statistics": "batch_average", **origin}


def importance_weight_records(network: nn.Module) -> list[dict[str, Any]] | None:
    """Importance weights and position of each SN layer, in network order; None without SN."""
    positions = layer_positions(network)
    records = [
        {"name": name, "stage": positions[name].stage, "place": positions[name].conv, **weights}
        for name, weights in importance_weights(network).items()
    ]
    return records or None
