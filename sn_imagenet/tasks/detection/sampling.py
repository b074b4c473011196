"""Which images form a batch: groups of one orientation, since each replica is padded by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sn_imagenet.data.errors import DataError
from sn_imagenet.data.loaders import CalibrationBatchSampler, TrainBatchSampler
from sn_imagenet.data.seeding import epoch_order


def grouped_order(ratios: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Groups of ``size`` images, all wide (width >= height) or all tall: int64 [groups, size].

    The images are taken in the epoch's order, and a group is complete when its last image is taken,
    so groups have a random order too. The last incomplete group of each kind is left out. Their
    number is the same in each epoch.
    """
    order = epoch_order(len(ratios), seed, epoch).numpy()
    groups = []
    for kind in (True, False):
        places = np.flatnonzero((ratios[order] >= 1) == kind)
        groups.append(places[: len(places) // size * size].reshape(-1, size))
    together = np.concatenate(groups)
    result: np.ndarray = order[together[together[:, -1].argsort()]]
    return result


class GroupSampler(TrainBatchSampler):
    """The rank's share of each global batch of an epoch: replica i of step b has group b * G + i,
    so that image j of a replica is at position j * G + i of the global batch.

    Raises:
        DataError: an epoch would have no step.
    """

    def __init__(
        self, ratios: np.ndarray, replicas: int, samples_per_replica: int, **sampling: Any
    ) -> None:
        self.ratios, self.shape = ratios, (-1, replicas, samples_per_replica)
        total = replicas * samples_per_replica
        steps = len(grouped_order(ratios, samples_per_replica, 0, 0)) // replicas
        if not steps:
            raise DataError(
                f"one step needs {replicas} groups of {samples_per_replica} images, each all wide "
                f"or all tall; {len(ratios)} training images with objects are not enough; use a "
                "smaller batch= or more data"
            )
        super().__init__(steps * total, total, **sampling)

    def order(self, epoch: int) -> Tensor:
        order = grouped_order(self.ratios, self.shape[-1], self.seed, epoch).reshape(-1)
        steps = order[: self.num_samples].reshape(self.shape)
        return torch.from_numpy(steps.transpose(0, 2, 1).reshape(-1))


class CalibrationSampler(CalibrationBatchSampler):
    """Random training minibatches for the batch average, each of one orientation and in a batch of
    its own."""

    def __init__(self, ratios: np.ndarray, minibatch: int, **sampling: Any) -> None:
        self.ratios = ratios
        available = grouped_order(ratios, minibatch, 0, 0).size
        super().__init__(available, minibatch, **{**sampling, "minibatches_per_batch": 1})

    def order(self, epoch: int) -> Tensor:
        groups = grouped_order(self.ratios, self.minibatch, self.seed, epoch)
        return torch.from_numpy(groups.reshape(-1))
