"""The accuracy of architectures that the controller samples, and the best of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.models.cell import Architecture
from sn_imagenet.tasks.architecture_search.controller import to_architectures

REWARDS, TEST = 0, 1  # parts of the data


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
        rewards, test = (
            100 * correct.double() / seen
            for correct, seen in zip(self._correct, self._seen, strict=True)
        )
        return {
            "val_accuracy": rewards.mean().item(),
            "best_val_accuracy": rewards.max().item(),
            "test_accuracy": test.item(),
            "seen": self._seen[REWARDS],
            "architecture": self._best,
        }
