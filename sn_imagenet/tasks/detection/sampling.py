"""Which images form a batch, and the loaders that read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from sn_imagenet.data.errors import DataError
from sn_imagenet.data.loaders import calibration_minibatches
from sn_imagenet.data.seeding import Key, epoch_order
from sn_imagenet.data.workers import block_signals, ignore_outside_signals
from sn_imagenet.tasks.detection.images import DetectionBatch, DetectionDataset


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


def group_count(ratios: np.ndarray, size: int) -> int:
    """The number of groups of :func:`grouped_order`."""
    wide = int((ratios >= 1).sum())
    return wide // size + (len(ratios) - wide) // size


class GroupSampler(Sampler[list[Key]]):
    """The rank's share of each global batch of an epoch: replica i of step b has group b * G + i,
    so that image j of a replica is at position j * G + i of the global batch.

    Raises:
        DataError: an epoch would have no step.
    """

    def __init__(
        self,
        ratios: np.ndarray,
        replicas: int,
        samples_per_replica: int,
        rank: int,
        world_size: int,
        seed: int,
    ) -> None:
        self.ratios, self.seed = ratios, seed
        self.replicas, self.size = replicas, samples_per_replica
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start_step = 0
        self.steps = group_count(ratios, self.size) // replicas
        if not self.steps:
            raise DataError(
                f"one step needs {replicas} groups of {self.size} images, each all wide or all "
                f"tall; {len(ratios)} training images with objects are not enough; use a smaller "
                "batch= or more data"
            )

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        order = grouped_order(self.ratios, self.size, self.seed, epoch)
        for step in range(self.start_step, self.steps):
            groups = order[step * self.replicas : (step + 1) * self.replicas]
            batch = groups.T.flatten()[self.rank :: self.world_size]
            yield [Key(epoch, index) for index in batch.tolist()]


class CalibrationSampler(Sampler[list[Key]]):
    """Random training minibatches for the batch average, one per batch, each on one rank, as in
    :class:`~sn_imagenet.data.loaders.CalibrationBatchSampler`, but of one orientation each."""

    def __init__(
        self,
        ratios: np.ndarray,
        minibatch: int,
        samples: int | Literal["all"],
        seed: int,
        rank: int,
        world_size: int,
        skip: int,
    ) -> None:
        wanted = calibration_minibatches(len(ratios), minibatch, samples)
        self.minibatches = min(wanted, group_count(ratios, minibatch))
        self.samples_used = self.minibatches * minibatch
        self.ratios, self.minibatch, self.seed = ratios, minibatch, seed
        self.chosen = range(skip + rank, self.minibatches, world_size)

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = -1 - self.seed
        order = grouped_order(self.ratios, self.minibatch, self.seed, epoch)
        for number in self.chosen:
            yield [Key(epoch, index) for index in order[number].tolist()]


class DetectionLoader:
    """The batches of ``sampler`` on ``device``; ``len()`` is their number. Results do not depend on
    ``workers``."""

    def __init__(
        self,
        dataset: DetectionDataset,
        sampler: Any,
        workers: int,
        device: torch.device,
        persistent: bool = False,
    ) -> None:
        self.sampler, self.device = sampler, device
        self.data_loader: DataLoader[DetectionBatch] = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=_identity,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=persistent and workers > 0,
            worker_init_fn=ignore_outside_signals,
            generator=torch.Generator(),  # otherwise it draws from the global one
        )

    def __len__(self) -> int:
        return len(self.data_loader)

    def __iter__(self) -> Iterator[DetectionBatch]:
        with block_signals():  # the workers start now
            batches = iter(self.data_loader)
        return (batch.to(self.device) for batch in batches)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[DetectionBatch]:
        """The training batches of ``epoch`` (0, 1, ...) from ``start_step`` on."""
        self.sampler.epoch, self.sampler.start_step = epoch, start_step
        return iter(self)


def _identity(batch: Any) -> Any:
    return batch  # not a lambda, since a spawned worker must pickle it
