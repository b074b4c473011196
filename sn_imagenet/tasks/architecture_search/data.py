"""The three parts of the data: for the weights, for rewards, and for the test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any, NamedTuple

import torch

from sn_imagenet.config import AugmentConfig
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.data.datasets import AugmentedDataset, DataSets
from sn_imagenet.data.loaders import BatchLoader, TrainLoader
from sn_imagenet.data.seeding import Key, epoch_order
from sn_imagenet.data.subset import split_source


@dataclass(frozen=True)
class SearchData(DataSets):
    """``train``: for the child's weights. ``val``: for rewards, not augmented. ``test``: the data
    set's validation images."""

    val: AugmentedDataset
    test: AugmentedDataset


def search_data(data: DataSets, augment: AugmentConfig, reward_fraction: float) -> SearchData:
    """Set aside ``reward_fraction`` of each class's training images for rewards, the same for
    every seed."""
    test, train = data.val, data.train
    assert test is not None, "image data have validation images"
    weights, reward = split_source(train.source, reward_fraction)
    return SearchData(
        train=AugmentedDataset(weights, train.data, augment, train.seed),
        val=AugmentedDataset(reward, train.data, None, train.seed),
        test=test,
        classes=data.classes,
        fingerprint={
            "train": weights.fingerprint(),
            "val": reward.fingerprint(),
            "test": data.fingerprint["val"],
        },
    )


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


class PartBatch(NamedTuple):
    """A batch of an evaluation, from the part for rewards or for the test."""

    is_test: bool
    images: ImageBatch


class EvaluationBatches:
    """The part for rewards, then the test part, each in an order that is the same for every run, in
    batches of ``size`` samples. A batch shares statistics, so it must not hold one class alone, as
    in the order of files."""

    def __init__(self, data: SearchData, size: int, workers: int, device: torch.device) -> None:
        self._loaders = []
        for part in (data.val, data.test):
            keys = [Key(0, index) for index in epoch_order(len(part), seed=0, epoch=0).tolist()]
            batches: Any = [keys[first : first + size] for first in range(0, len(keys), size)]
            self._loaders.append(BatchLoader(part, batches, workers, device, persistent=False))

    def __len__(self) -> int:
        return sum(map(len, self._loaders))

    def __iter__(self) -> Iterator[PartBatch]:
        for is_test, loader in zip((False, True), self._loaders, strict=True):
            yield from (PartBatch(is_test, batch) for batch in loader)
