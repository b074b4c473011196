"""The accuracy of architectures that the controller samples, and the best of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sn_imagenet.models.cell import Architecture
from sn_imagenet.tasks.architecture_search.data import PartBatch
from sn_imagenet.tasks.architecture_search.network import to_architectures


class SearchEvaluator:
    """Samples ``candidates`` architectures and evaluates each on all images for rewards. The best
    of them and of the last epoch's ``champion`` [1, D] is then evaluated on the test images."""

    def __init__(self, candidates: int, champion: Tensor) -> None:
        self._candidates, self._champion = candidates, champion
        self._children: list[Architecture] = []
        self._correct: dict[bool, Tensor] = {}  # by part: [children] or [1]
        self._seen = {False: 0, True: 0}

    def update(self, forward: Callable[..., Any], batch: PartBatch) -> None:
        (images, labels), is_test = batch.images, batch.is_test
        if not self._children:
            sampled = forward("policy", self._candidates).decisions
            self._children = to_architectures(torch.cat([sampled, self._champion]))
        # The images for rewards come first.
        children = [self._children[self._best]] if is_test else self._children
        correct = [(forward("child", images, c).argmax(1) == labels).sum() for c in children]
        self._correct[is_test] = torch.stack(correct) + self._correct.get(is_test, 0)
        self._seen[is_test] += len(labels)

    @property
    def _best(self) -> int:
        return int(self._correct[False].argmax())

    def gather(self) -> None:
        """Nothing to combine: a search is one process."""

    def finish(self) -> dict[str, Any]:
        """``val_accuracy``: mean over the sampled architectures; ``best_val_accuracy``,
        ``test_accuracy`` and ``architecture`` of the best. In percent, with shared weights."""
        on = {part: 100 * self._correct[part].double() / self._seen[part] for part in self._seen}
        return {
            "val_accuracy": on[False][: self._candidates].mean().item(),
            "best_val_accuracy": on[False].max().item(),
            "test_accuracy": on[True].item(),
            "seen": self._seen[False],
            "architecture": self._children[self._best],
        }
