"""Batches: which keys make up each batch on which rank, and the loaders that fetch them.

All loaders yield (images float32 [n, 3, S, S], labels int64 [n]) on ``device``. What they yield
does not depend on ``workers``; a worker uses one thread (DataLoader sees to that).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from sn_imagenet.data.datasets import AugmentedDataset
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.pixels import Normalizer, StoredBatch, on_device
from sn_imagenet.data.seeding import Key, epoch_order
from sn_imagenet.data.workers import obey_the_parent_alone, signals_held

Batch = tuple[Tensor, Tensor]
CPU = torch.device("cpu")


class TrainBatchSampler(Sampler[list[Key]]):
    """The rank's part of each global batch of one epoch, as lists of keys.

    Step b takes samples [b*B, (b+1)*B) of the epoch's order, B = ``global_batch``; the last
    partial batch is dropped. Position i of a global batch goes to rank i mod ``world_size``, in
    order, as DistributedSampler deals them. ``len()`` is the number of steps of a whole epoch,
    whatever ``start_step``.

    Raises:
        DataError: the global batch is larger than the data set.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch: int,
        rank: int,
        world_size: int,
        seed: int,
        epoch: int,
        start_step: int = 0,
    ) -> None:
        if global_batch > num_samples:
            raise DataError(
                f"The total batch of {global_batch} samples (gpus x samples per GPU) is larger "
                f"than the training set of {num_samples}: an epoch would have no step. Choose a "
                "smaller batch or more data."
            )
        self.num_samples = num_samples
        self.global_batch = global_batch
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.set_epoch(epoch, start_step)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """What the next iteration yields: ``epoch``, from ``start_step`` on."""
        self.epoch = epoch
        self.start_step = start_step

    def __len__(self) -> int:
        return self.num_samples // self.global_batch

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        order = epoch_order(self.num_samples, self.seed, epoch)
        for step in range(self.start_step, len(self)):
            batch = order[step * self.global_batch : (step + 1) * self.global_batch]
            yield [Key(epoch, index) for index in batch[self.rank :: self.world_size].tolist()]


class EvalBatchSampler(Sampler[list[Key]]):
    """Batch b is samples [b*batch_size, (b+1)*batch_size), the last perhaps fewer, and goes to rank
    b mod ``world_size``: over all ranks each sample exactly once. Ranks may have different numbers
    of batches, even none.

    Batches are dealt whole, since an image's outputs depend, in their last bits, on the size of its
    batch: so they are the same on any number of ranks.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int, world_size: int) -> None:
        self.samples = range(num_samples)
        self.batch_size = batch_size
        self.starts = range(rank * batch_size, num_samples, world_size * batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in self.starts:
            yield [Key(0, index) for index in self.samples[start : start + self.batch_size]]


def calibration_minibatches(num_samples: int, minibatch: int, samples: int | Literal["all"]) -> int:
    """How many minibatches a calibration has, of a training set of ``num_samples``.

    Raises:
        DataError: not one can be filled.
    """
    available = num_samples if samples == "all" else min(samples, num_samples)
    if available < minibatch:
        raise DataError(
            f"calibration.samples={samples}, of a training set of {num_samples}, does not fill "
            f"one minibatch of {minibatch} samples, those that share their statistics; expected "
            "at least as many, or 'all'"
        )
    return available // minibatch


class CalibrationBatchSampler(Sampler[list[Key]]):
    """Random training minibatches for the batch average of the paper's Sec. 2.1.

    The training set is permuted by ``seed``; minibatch m is its samples
    [m*minibatch, (m+1)*minibatch), up to ``samples`` in all, without a last partial one. The
    ``first`` minibatches are left out. A batch holds up to ``minibatches_per_batch`` of them (k'),
    interleaved: sample j belongs to its minibatch j mod k', the order in which the normalization
    layers expect their groups. Batches are dealt whole, as in :class:`EvalBatchSampler`.
    Augmentation draws are those of epoch -1 - seed, which no training epoch uses.

    Raises:
        DataError: not one minibatch can be filled.
    """

    def __init__(
        self,
        num_samples: int,
        minibatch: int,
        samples: int | Literal["all"],
        seed: int,
        rank: int,
        world_size: int,
        minibatches_per_batch: int,
        first: int = 0,
    ) -> None:
        self.minibatches = calibration_minibatches(num_samples, minibatch, samples)
        self.num_samples = num_samples
        self.minibatch = minibatch
        self.seed = seed
        self.minibatches_per_batch = k = minibatches_per_batch
        self.starts = range(first + rank * k, self.minibatches, world_size * k)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = -1 - self.seed
        order = epoch_order(self.num_samples, self.seed, epoch)
        table = order[: self.minibatches * self.minibatch].view(self.minibatches, self.minibatch)
        for start in self.starts:
            held = table[start : start + self.minibatches_per_batch]
            yield [Key(epoch, index) for index in held.t().flatten().tolist()]


class BatchLoader:
    """The batches of ``sampler``: read and cut by the workers, finished on ``device``. ``len()``
    is their number.

    Args:
        persistent: whether the workers outlive an iteration.
    """

    def __init__(
        self,
        dataset: AugmentedDataset,
        sampler: Sampler[list[Key]],
        workers: int,
        device: torch.device,
        persistent: bool,
    ) -> None:
        self.device = device
        self.normalizer = Normalizer(dataset.data, device)
        self.stored: DataLoader[StoredBatch] = DataLoader(
            dataset,  # type: ignore[arg-type]  # which gives whole batches
            batch_sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=persistent and workers > 0,
            worker_init_fn=obey_the_parent_alone,
            # Without one of its own, DataLoader draws from the global generator at each iteration.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.stored)

    def __iter__(self) -> Iterator[Batch]:
        # The workers begin now, not when the first batch is asked for.
        with signals_held():
            stored = iter(self.stored)
        return on_device(stored, self.normalizer, self.device)


class TrainLoader(BatchLoader):
    """The training batches of a rank; made once per run.

    ``for images, labels in loader.epoch(epoch, start_step)`` runs through one epoch; ``len()`` is
    its number of steps. Keys carry the epoch, so the workers, which stay alive between epochs
    (starting them anew would take longer than an epoch of a small data set), need not be told of
    it. An epoch may be left early; only one can be under way at a time.
    """

    def __init__(
        self,
        dataset: AugmentedDataset,
        sampler: TrainBatchSampler,
        workers: int,
        device: torch.device,
    ) -> None:
        super().__init__(dataset, sampler, workers, device, persistent=True)
        self.train_sampler = sampler

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` (0, 1, ...) from ``start_step`` on.

        Raises (while iterating):
            DataError: a file cannot be decoded; the message names it.
        """
        self.train_sampler.set_epoch(epoch, start_step)
        return iter(self)


class CalibrationLoader(BatchLoader):
    """The calibration batches of a rank. ``minibatches`` and ``samples_used`` count those of all
    ranks together; ``minibatch`` is the samples in each."""

    def __init__(
        self,
        dataset: AugmentedDataset,
        sampler: CalibrationBatchSampler,
        workers: int,
        device: torch.device,
    ) -> None:
        super().__init__(dataset, sampler, workers, device, persistent=False)
        self.minibatch = sampler.minibatch
        self.minibatches = sampler.minibatches
        self.samples_used = sampler.minibatches * sampler.minibatch


def train_loader(
    dataset: AugmentedDataset,
    *,
    global_batch: int,
    rank: int,
    world_size: int,
    seed: int,
    workers: int,
    device: torch.device = CPU,
) -> TrainLoader:
    """Training batches by :class:`TrainBatchSampler`, n = global_batch / world_size.

    Raises:
        DataError: the global batch is larger than the training set.
    """
    sampler = TrainBatchSampler(len(dataset), global_batch, rank, world_size, seed, epoch=0)
    return TrainLoader(dataset, sampler, workers, device)


def eval_loader(
    dataset: AugmentedDataset,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    workers: int,
    device: torch.device = CPU,
) -> BatchLoader:
    """Each sample exactly once over all ranks, by :class:`EvalBatchSampler`; make it once per run.

    Raises (while iterating):
        DataError: a file cannot be decoded.
    """
    sampler = EvalBatchSampler(len(dataset), batch_size, rank, world_size)
    return BatchLoader(dataset, sampler, workers, device, persistent=True)


def calibration_loader(
    dataset: AugmentedDataset,
    *,
    minibatch: int,
    samples: int | Literal["all"],
    seed: int,
    rank: int,
    world_size: int,
    minibatches_per_batch: int,
    workers: int,
    device: torch.device = CPU,
    first: int = 0,
) -> CalibrationLoader:
    """Training minibatches by :class:`CalibrationBatchSampler`, with training augmentation.

    ``samples`` beyond the training set means all of it, as ``samples_used`` then says; it counts
    those of the ``first`` minibatches too, which are not read.

    Raises:
        DataError: not one minibatch can be filled; while iterating: a file cannot be decoded.
    """
    sampler = CalibrationBatchSampler(
        len(dataset), minibatch, samples, seed, rank, world_size, minibatches_per_batch, first
    )
    return CalibrationLoader(dataset, sampler, workers, device)


def _as_it_is(batch: Any) -> Any:
    """AugmentedDataset has collated it already; a named function, since a worker may be spawned."""
    return batch
