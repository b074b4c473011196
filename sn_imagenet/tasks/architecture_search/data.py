"""Batches for the rewards of an epoch, and for an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any

import torch

from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.data.datasets import AugmentedDataset
from sn_imagenet.data.loaders import BatchLoader, TrainLoader
from sn_imagenet.data.seeding import Key, epoch_order


@dataclass(frozen=True)
class RepeatedLoader:
    """Passes over a data set one after another, dealt to epochs of ``steps`` batches each."""

    loader: TrainLoader
    steps: int

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[ImageBatch]:
        """The batches of ``epoch`` from ``start_step`` on."""
        first, skipped = divmod(epoch * self.steps + start_step, len(self.loader))
        starts = chain([skipped], count(0, 0))
        passes = map(self.loader.epoch, count(first), starts)
        return islice(chain.from_iterable(passes), self.steps - start_step)


class EvaluationBatches:
    """(number of the part, batch of ``size`` samples) of each of ``parts`` in turn, in an order
    that is the same for every run. A batch shares statistics, so it must not hold one class alone,
    as in the order of files."""

    def __init__(
        self, parts: Sequence[AugmentedDataset], size: int, workers: int, device: torch.device
    ) -> None:
        self._loaders = []
        for part in parts:
            keys = [Key(0, index) for index in epoch_order(len(part), seed=0, epoch=0).tolist()]
            batches: Any = [keys[first : first + size] for first in range(0, len(keys), size)]
            self._loaders.append(BatchLoader(part, batches, workers, device, persistent=False))

    def __len__(self) -> int:
        return sum(map(len, self._loaders))

    def __iter__(self) -> Iterator[tuple[int, ImageBatch]]:
        for part, loader in enumerate(self._loaders):
            yield from ((part, batch) for batch in loader)
