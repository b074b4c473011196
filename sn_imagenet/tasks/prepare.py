"""Prepare the device, data and network that training and evaluation start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.datasets import DataSets
from sn_imagenet.data.loaders import calibration_minibatches
from sn_imagenet.distributed import choose_device, samples_that_share_statistics, set_precision
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.models import require_complete_method
from sn_imagenet.norms.control import stores_statistics
from sn_imagenet.norms.kernels import select_backend
from sn_imagenet.runs.evaluations import same_images
from sn_imagenet.runs.provenance import provenance
from sn_imagenet.tasks.task import Task, build_task


@dataclass(frozen=True)
class Prepared:
    """A run ready to start. ``network`` is on ``device`` with the same weights on every rank.

    ``provenance`` is recorded before any computation, since the checkout may change during a long
    run.
    """

    config: ExperimentConfig
    task: Task
    device: torch.device
    data: DataSets
    network: nn.Module
    provenance: dict[str, Any]


def prepare(config: ExperimentConfig) -> Prepared:
    """Check the config and build all that a run needs. Not collective.

    Raises:
        UserError: the device, the data, the model or the normalization layer cannot be used.
    """
    device = choose_device(config.trainer.device)
    set_precision(config.trainer.precision, device)
    task = build_task(config)
    data = task.datasets()
    network = task.network(data)
    require_complete_method(network, config.norm)
    _check_test_statistics(network, config, task.calibrates)
    if task.calibrates and stores_statistics(network):
        minibatch = samples_that_share_statistics(network, config.batch)
        calibration_minibatches(len(data.train), minibatch, config.calibration.samples)
    task.check(network, data)
    # The fastest layout for convolutions on CUDA and on CPUs (docs/benchmarks.md).
    network = network.to(device).to(memory_format=torch.channels_last)
    probe = torch.empty(1, 1, 1, 1, device=device)
    origin = {**provenance(device), "norm_backend": select_backend(probe).name}
    return Prepared(config, task, device, data, network, origin)


def require_same_data(path: Path, then: dict[str, Any], data: DataSets) -> None:
    """Require that ``data`` has the fingerprint ``then``, with which ``path`` was trained.

    Raises:
        UserError: it differs; names the parts that differ and their numbers of samples.
    """
    now = data.fingerprint
    changed = [part for part in then | now if not same_images(then.get(part), now.get(part))]
    if changed:
        counts = ", ".join(
            f"{part}: {then.get(part, {}).get('samples')} samples then, "
            f"{now.get(part, {}).get('samples')} now"
            for part in changed
        )
        raise UserError(
            f"{path} was trained with other data: the {' and '.join(changed)} images differ "
            f"({counts}, or other files); point data.root (data.train, data.val) to the same data, "
            "or start a new run with another run_dir="
        )


def _check_test_statistics(network: nn.Module, config: ExperimentConfig, calibrates: bool) -> None:
    """Require that the network has the statistics ``norm.test_statistics``.

    Raises:
        ConfigError: it does not.
    """
    stored = ["moving_average", "batch_average"][: 1 + calibrates]
    possible = stored if stores_statistics(network) else ["sample"]
    if config.norm.test_statistics not in possible:
        raise ConfigError(
            f"norm.test_statistics={config.norm.test_statistics}: norm={config.norm.name} has "
            f"{' and '.join(possible)} only; if its class uses the batch's statistics, set "
            "stores_statistics = True there, else norm.test_statistics=sample"
        )
