"""The images that architectures are judged by, and their accuracy on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice, repeat
from typing import Any

import torch

from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.data.datasets import AugmentedDataset
from sn_imagenet.data.loaders import BatchLoader
from sn_imagenet.data.seeding import Key, epoch_order
from sn_imagenet.models.cell import Architecture
from sn_imagenet.tasks.architecture_search.controller import to_architectures

REWARDS, TEST = 0, 1  # parts of the data


@dataclass(frozen=True)
class RepeatedLoader:
    """Passes over a data set one after another, dealt to epochs of ``steps`` batches each."""

    loader: BatchLoader
    steps: int

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[ImageBatch]:
        """The batches of ``epoch`` from ``start_step`` on."""
        first, skipped = divmod(epoch * self.steps + start_step, len(self.loader))
        passes = map(self.loader.epoch, count(first), chain([skipped], repeat(0)))
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


class SearchEvaluator:
    """Samples ``candidates`` architectures and evaluates each on all images for rewards, and then
    the best of them on the test images."""

    def __init__(self, candidates: int) -> None:
        self._candidates = candidates
        self._children: list[Architecture] = []
        self._correct: list[Any] = [0, 0]  # by part: int64 [candidates], [1]
        self._seen = [0, 0]

    def update(self, forward: Callable[..., Any], batch: tuple[int, ImageBatch]) -> None:
        part, (images, labels) = batch
        if not self._children:
            self._children = to_architectures(forward("policy", self._candidates).decisions)
        # The images for rewards come first.
        children = [self._best] if part == TEST else self._children
        correct = [(forward("child", images, c).argmax(1) == labels).sum() for c in children]
        self._correct[part] = self._correct[part] + torch.stack(correct)
        self._seen[part] += len(labels)

    @property
    def _best(self) -> Architecture:
        return self._children[int(self._correct[REWARDS].argmax())]

    def gather(self) -> None:
        """Nothing to combine: a search is one process."""

    def finish(self) -> dict[str, Any]:
        """``val_accuracy``: mean over the sampled architectures; ``best_val_accuracy``,
        ``test_accuracy`` and ``architecture`` of the best. In percent, with shared weights."""
        rewards, test = (100 * self._correct[p].double() / self._seen[p] for p in (REWARDS, TEST))
        return {
            "val_accuracy": rewards.mean().item(),
            "best_val_accuracy": rewards.max().item(),
            "test_accuracy": test.item(),
            "seen": self._seen[REWARDS],
            "architecture": self._best,
        }
