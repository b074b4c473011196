"""A trained network's evaluations: moving average and batch average, or the sample's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.loaders import eval_loader
from sn_imagenet.distributed import autocast_for, print_rank0, rank, world_size
from sn_imagenet.evaluation.accuracy import accuracy
from sn_imagenet.evaluation.calibration import (
    Calibration,
    Samples,
    calibrate,
    samples_that_share_statistics,
)
from sn_imagenet.evaluation.detail import Detail
from sn_imagenet.evaluation.prepare import Prepared, stores_statistics
from sn_imagenet.evaluation.progress import progress_bar
from sn_imagenet.models import layer_positions
from sn_imagenet.norms import (
    StoredStatistics,
    importance_weights,
    set_replicas,
    stored_statistics,
)


def eval_batch_size(config: ExperimentConfig, device: torch.device) -> int:
    """``trainer.eval_batch_size``, or where it is null what suits the device: 256 images on CUDA;
    on a CPU as many as have 2^21 pixels together (41 at 224 x 224), since larger batches cost
    memory and save no time there, and 256 at most.
    """
    if config.trainer.eval_batch_size is not None:
        return config.trainer.eval_batch_size
    if device.type == "cuda":
        return 256
    return max(1, min(256, 2**21 // config.data.image_size**2))


def validate(prepared: Prepared, detail: Detail | None = None) -> dict[str, Any]:
    """Evaluate the network with its present statistics: what :func:`accuracy` returns, and
    ``statistics``, which they are. ``detail`` observes it.
    """
    config, network, device = prepared.config, prepared.network, prepared.device
    network.eval()
    set_replicas(network)
    loader = eval_loader(
        prepared.data.val,
        batch_size=eval_batch_size(config, device),
        rank=rank(),
        world_size=world_size(),
        workers=config.data.workers,
        device=device,
    )
    batches = progress_bar(loader, "evaluation")
    autocast = autocast_for(config.trainer.precision, device)
    if detail is None:
        counts = accuracy(network, batches, device, autocast)
    else:
        counts = accuracy(network, batches, device, autocast, detail.observe)
        detail.gather()
    if counts["nonfinite"]:
        print_rank0(
            f"warning: the network's output is not finite for {counts['nonfinite']} of "
            f"{counts['seen']} samples; they count as wrong"
        )
    return {"statistics": "moving_average" if stores_statistics(network) else "sample", **counts}


@dataclass(frozen=True)
class Evaluated:
    """An evaluation: ``record``, its entry in ``result.json``; the ``statistics`` that a batch
    average used (None: those of the network); and its ``detail``, where that was asked for."""

    record: dict[str, Any]
    statistics: StoredStatistics | None = None
    detail: Detail | None = None


def evaluate(
    prepared: Prepared,
    *,
    samples: Sequence[Samples] | None = None,
    draws: int = 1,
    new_detail: Callable[[], Detail] | None = None,
) -> list[Evaluated]:
    """All evaluations of a network under each of the statistics that it can use.

    ``moving_average`` and ``batch_average`` for a normalizer that stores statistics, ``sample`` for
    one that does not. Each record is what :func:`validate` returns, with ``calibration``: how the
    batch average was made, or null; ``precision``; and ``data``: its name and the fingerprint of
    the validation images.

    Args:
        samples: of the batch averages, one evaluation for each, all in one pass over the training
            samples; None: the config's.
        draws: how often they are drawn, with the config's seed and those after it.
        new_detail: makes what observes one evaluation.
    """
    config, network = prepared.config, prepared.network

    def evaluated(calibration: Calibration | None, used: StoredStatistics | None) -> Evaluated:
        detail = new_detail() if new_detail else None
        record = {
            **validate(prepared, detail),
            "calibration": calibration.to_dict() if calibration else None,
            "precision": config.trainer.precision,
            "data": {"name": config.data.name, "val": prepared.data.fingerprint["val"]},
        }
        if calibration:
            record["statistics"] = "batch_average"
        return Evaluated(record, used, detail)

    found = [evaluated(None, None)]
    for draw in range(draws if stores_statistics(network) else 0):
        seed = config.calibration.seed + draw
        for statistics, calibration in calibrated(prepared, samples, seed):
            with stored_statistics(network, statistics):
                found.append(evaluated(calibration, statistics))
    return found


def calibrated(
    prepared: Prepared, samples: Sequence[Samples] | None = None, seed: int | None = None
) -> list[tuple[StoredStatistics, Calibration]]:
    """What :func:`calibrate` makes of a network as its config says; of other ``samples`` or by
    another ``seed`` where they are given.
    """
    config, network = prepared.config, prepared.network
    asked = config.calibration
    return calibrate(
        network,
        prepared.data.train,
        asked if seed is None else replace(asked, seed=seed),
        samples_per_replica=samples_that_share_statistics(network, config.batch),
        batch_size=eval_batch_size(config, prepared.device),
        workers=config.data.workers,
        device=prepared.device,
        autocast=autocast_for(config.trainer.precision, prepared.device),
        samples=samples,
    )


def validate_calibrated(prepared: Prepared) -> dict[str, Any]:
    """Evaluate the network with its batch average: what :func:`validate` returns, with the
    ``calibration`` and the ``seconds`` that it took. The network is as it was before.
    """
    start = time.perf_counter()
    ((statistics, calibration),) = calibrated(prepared)
    seconds = time.perf_counter() - start
    with stored_statistics(prepared.network, statistics):
        counts = validate(prepared)
    made = {"calibration": calibration.to_dict(), "seconds": round(seconds, 3)}
    return {**counts, "statistics": "batch_average", **made}


def importance_weight_records(network: nn.Module) -> list[dict[str, Any]] | None:
    """The importance weights of each SN layer in network order with its place; None without SN."""
    positions = layer_positions(network)
    described = [
        {"name": name, "stage": positions[name].stage, "place": positions[name].conv, **weights}
        for name, weights in importance_weights(network).items()
    ]
    return described or None
