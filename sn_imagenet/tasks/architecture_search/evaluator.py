"""The accuracy of architectures that the controller samples, and the best of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sn_imagenet.models.cell import to_architecture
from sn_imagenet.tasks.architecture_search.data import PartBatch


class SearchEvaluator:
    """Samples ``candidates`` architectures and evaluates each on all images for rewards. The best
    of them and of the last epoch's champion is then evaluated on the test images."""

    def __init__(self, candidates: int, device: torch.device) -> None:
        self._candidates = candidates
        self._device = device
        self._children: list[list[int]] = []
        self._correct: Tensor  # [children]
        self._test_correct = torch.zeros((), dtype=torch.int64, device=device)
        self._best: int | None = None
        self._seen = self._test_seen = 0

    def update(self, forward: Callable[..., Any], batch: PartBatch) -> None:
        images, labels = batch.images

        def count_correct(child: list[int]) -> Tensor:
            return (forward("child", images, child).argmax(1) == labels).sum()

        if not self._children:
            sampled = forward("policy", self._candidates).decisions
            self._children = torch.cat([sampled, forward("champion")]).tolist()
            self._correct = torch.zeros(len(self._children), dtype=torch.int64, device=self._device)
        if not batch.is_test:
            self._correct += torch.stack([count_correct(child) for child in self._children])
            self._seen += len(labels)
            return
        if self._best is None:  # the images for rewards come first
            self._best = int(self._correct.argmax())
        self._test_correct += count_correct(self._children[self._best])
        self._test_seen += len(labels)

    def gather(self) -> None:
        """Nothing to combine: a search is one process."""

    def finish(self) -> dict[str, Any]:
        """``val_accuracy``: mean over the sampled architectures; ``best_val_accuracy``,
        ``test_accuracy`` and ``architecture`` of the best. All in percent, with shared weights."""
        assert self._best is not None, "both parts have images"
        percent = (100 * self._correct.double() / self._seen).tolist()
        return {
            "val_accuracy": sum(percent[: self._candidates]) / self._candidates,
            "best_val_accuracy": percent[self._best],
            "test_accuracy": 100 * self._test_correct.item() / self._test_seen,
            "seen": self._seen,
            "architecture": to_architecture(self._children[self._best]),
        }
