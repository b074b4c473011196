"""Batch samplers, which assign sample keys to batches and ranks, and the loaders that use them.

All loaders yield (images [n, 3, S, S], labels int64 [n]) on ``device``; images are float32 unless
a ``dtype`` is given. The output does not depend on ``workers``. DataLoader limits each worker to
one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from sn_imagenet.data.datasets import AugmentedDataset
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.seeding import Key, epoch_order
from sn_imagenet.data.workers import block_signals, ignore_outside_signals

CPU = torch.device("cpu")
PREFETCHED = 2  # batches that each worker prepares; DataLoader's default


class TrainBatchSampler(Sampler[list[Key]]):
    """The rank's share of each global batch of one epoch, as lists of keys.

    Step b takes samples [b*B, (b+1)*B) of the epoch's order, B = ``global_batch``; the last
    partial batch is dropped. As in DistributedSampler, position i of a global batch goes to rank
    i mod ``world_size``, in order. ``len()`` is the number of steps of a whole epoch, also with
    ``start_step``.

    Raises:
        DataError: the global batch is larger than the data set.
    """

    def __init__(
        self, num_samples: int, global_batch: int, rank: int, world_size: int, seed: int
    ) -> None:
        if global_batch > num_samples:
            raise DataError(
                f"The total batch of {global_batch} samples (gpus x samples per GPU) is larger "
                f"than the training set of {num_samples}, so an epoch would have no step. Use a "
                "smaller batch or more data."
            )
        self.num_samples = num_samples
        self.global_batch = global_batch
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Make the next iteration yield ``epoch``, from ``start_step`` on."""
        self.epoch = epoch
        self.start_step = start_step

    def __len__(self) -> int:
        return self.num_samples // self.global_batch

    def order(self, epoch: int) -> Tensor:
        """The samples of an epoch, int64 [num_samples]."""
        return epoch_order(self.num_samples, self.seed, epoch)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        order = self.order(epoch)
        for step in range(self.start_step, len(self)):
            batch = order[step * self.global_batch : (step + 1) * self.global_batch]
            yield [Key(epoch, index) for index in batch[self.rank :: self.world_size].tolist()]


def eval_batches(num_samples: int, batch_size: int, rank: int, world_size: int) -> list[list[Key]]:
    """The rank's batches of an evaluation. Batch b is samples [b*batch_size, (b+1)*batch_size),
    with a partial last batch, and goes to rank b mod ``world_size``. Over all ranks, each sample
    occurs exactly once. Ranks may have different numbers of batches, even none.

    Batches are not split among ranks, because the last bits of an image's outputs depend on the
    size of its batch. So the outputs are the same on any number of ranks.
    """
    keys = [Key(0, index) for index in range(num_samples)]
    starts = range(rank * batch_size, num_samples, world_size * batch_size)
    return [keys[start : start + batch_size] for start in starts]


def calibration_minibatches(num_samples: int, minibatch: int, samples: int | Literal["all"]) -> int:
    """Number of minibatches of a calibration on a training set of ``num_samples``.

    Raises:
        DataError: there are too few samples for one minibatch.
    """
    available = num_samples if samples == "all" else min(samples, num_samples)
    if available < minibatch:
        raise DataError(
            f"calibration.samples={samples}, with a training set of {num_samples}, does not fill "
            f"one minibatch of {minibatch} samples (those that share statistics); expected at "
            "least as many, or 'all'"
        )
    return available // minibatch


class CalibrationBatchSampler(Sampler[list[Key]]):
    """Random training minibatches for the batch average of the paper's Sec. 2.1.

    The training set is permuted by ``seed``. Minibatch m is samples [m*minibatch, (m+1)*minibatch)
    of that order, up to ``samples`` in all; a partial last one is dropped. The first ``skip``
    minibatches are left out. A batch holds up to ``minibatches_per_batch`` minibatches (k'),
    interleaved: sample j belongs to minibatch j mod k', the order in which the normalization layers
    expect their groups. Batches are not split among ranks, as in :func:`eval_batches`.
    ``minibatches`` and ``samples_used`` are totals over all ranks, with the skipped ones.
    Augmentation draws are those of epoch -1 - seed, which no training epoch uses.

    Raises:
        DataError: there are too few samples for one minibatch.
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
        skip: int = 0,
    ) -> None:
        self.minibatches = calibration_minibatches(num_samples, minibatch, samples)
        self.samples_used = self.minibatches * minibatch
        self.num_samples = num_samples
        self.minibatch = minibatch
        self.seed = seed
        self.minibatches_per_batch = k = minibatches_per_batch
        self.starts = range(skip + rank * k, self.minibatches, world_size * k)

    def __len__(self) -> int:
        return len(self.starts)

    def order(self, epoch: int) -> Tensor:
        """The samples in the order of the minibatches, int64 [num_samples]."""
        return epoch_order(self.num_samples, self.seed, epoch)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = -1 - self.seed
        order = self.order(epoch)
        table = order[: self.minibatches * self.minibatch].view(self.minibatches, self.minibatch)
        for start in self.starts:
            group = table[start : start + self.minibatches_per_batch]
            yield [Key(epoch, index) for index in group.t().flatten().tolist()]


class BatchLoader:
    """The batches of ``sampler`` on ``device``; ``len()`` is their number. Workers read and crop
    the images, and the rest of the transform (``dataset.finisher``) runs on the device.

    ``for images, labels in loader.epoch(epoch, start_step)`` iterates over an epoch of training.
    Workers stay alive between iterations, because restarting them would take longer than an epoch
    of a small data set. The keys tell them the epoch. An iteration may stop early, but only one can
    be active at a time.

    Args:
        persistent: whether the workers stay alive.
        finishing: further arguments of ``dataset.finisher``.

    Raises:
        DataError: the batches that the workers prepare do not fit into shared memory; while
            iterating, a file cannot be decoded (the message names it).
    """

    def __init__(
        self,
        dataset: Any,
        sampler: Any,
        workers: int,
        device: torch.device,
        persistent: bool = True,
        **finishing: Any,
    ) -> None:
        self.sampler = sampler
        if isinstance(dataset, AugmentedDataset):
            _require_shared_memory(dataset, sampler, workers)
        self.finish = dataset.finisher(device, **finishing)
        self.data_loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=_identity,
            num_workers=workers,
            prefetch_factor=PREFETCHED if workers else None,
            pin_memory=device.type == "cuda",
            persistent_workers=persistent and workers > 0,
            worker_init_fn=ignore_outside_signals,
            # Otherwise, DataLoader draws from the global generator at each iteration.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.data_loader)

    def __iter__(self) -> Iterator[Any]:
        # Start the workers now, not at the first batch.
        with block_signals():
            stored_batches = iter(self.data_loader)
        return map(self.finish, stored_batches)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """The batches of ``epoch`` (0, 1, ...) from ``start_step`` on."""
        self.sampler.set_epoch(epoch, start_step)
        return iter(self)


def _make_loader(
    sampler: Callable[..., Any],
    dataset: AugmentedDataset,
    *,
    workers: int,
    device: torch.device = CPU,
    persistent: bool = True,
    dtype: torch.dtype = torch.float32,
    **sampling: Any,
) -> BatchLoader:
    """The batches of ``sampler(len(dataset), **sampling)``, which may raise a DataError."""
    batches = sampler(len(dataset), **sampling)
    return BatchLoader(dataset, batches, workers, device, persistent, dtype=dtype)


# The arguments after the data set are those of the sampler, ``workers``, ``device`` and ``dtype``.
train_loader = partial(_make_loader, TrainBatchSampler)
eval_loader = partial(_make_loader, eval_batches)
calibration_loader = partial(_make_loader, CalibrationBatchSampler, persistent=False)


def _require_shared_memory(dataset: AugmentedDataset, sampler: Any, workers: int) -> None:
    try:
        system = os.statvfs("/dev/shm")
    except OSError:
        return
    batch = len(next(iter(sampler), ())) * 3 * dataset.data.image_size**2
    need, free = PREFETCHED * workers * batch, system.f_bavail * system.f_frsize
    if need > free:
        raise DataError(
            f"data.workers={workers} needs about {need / 1e6:.1f} MB of shared memory, {PREFETCHED}"
            f" batches of {batch / 1e6:.1f} MB for each, but /dev/shm has {free / 1e6:.1f} MB. "
            "Enlarge it (docker run --shm-size=1g, or --ipc=host), or use data.workers=0."
        )


def _identity(batch: Any) -> Any:
    """AugmentedDataset collates already. Not a lambda, because a spawned worker must pickle it."""
    return batch
