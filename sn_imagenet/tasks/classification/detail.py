"""Accuracy by class and logits of an evaluation, beyond its total counts."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sn_imagenet.distributed import all_reduce_sum, rank, world_size
from sn_imagenet.runs.files import csv_table


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the label of each row of logits [m, K] ranks first, second, ... fifth: bool [m, 5],
    or [m, K] for fewer classes. Rows with a non-finite logit are all False, since topk ranks NaN
    first.
    """
    finite = logits.isfinite().all(dim=1)
    first = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return (first == labels[:, None]) & finite[:, None]


class Detail:
    """The samples of one evaluation, in the order of the data set once they are gathered.

    ``labels``: int64 [N]; ``correct``: int64 [N], 1 if the label ranks first; ``logits``: float32
    [N, K], or [0, K] if they are not kept.

    Args:
        classes: K, the network's number of classes.
        samples: N, the size of the data set over all ranks.
        batch_size: of the evaluation's loader.
        keep_logits: also keep the logits.
    """

    def __init__(
        self, classes: int, samples: int, batch_size: int, device: torch.device, keep_logits: bool
    ) -> None:
        self.labels = torch.zeros(samples, dtype=torch.long, device=device)
        self.correct = torch.zeros_like(self.labels)
        self.logits = torch.zeros(samples if keep_logits else 0, classes, device=device)
        self._next = rank() * batch_size
        self._step = world_size() * batch_size

    def observe(self, logits: Tensor, labels: Tensor) -> None:
        """Record the logits [m, K] and labels [m] of this rank's next batch."""
        end = self._next + len(labels)
        self.labels[self._next : end] = labels
        self.correct[self._next : end] = correct(logits, labels)[:, 0]
        if len(self.logits):
            self.logits[self._next : end] = logits.float()
        self._next += self._step

    def gather(self) -> None:
        """Sum the records of all ranks on every rank. Collective; call once."""
        for table in (self.labels, self.correct, self.logits):
            all_reduce_sum(table)

    @property
    def by_class(self) -> list[tuple[int, int]]:
        """(correct, seen) of each class, top-1."""
        classes = self.logits.shape[1]
        seen = self.labels.bincount(minlength=classes)
        correct = self.labels[self.correct == 1].bincount(minlength=classes)
        return list(zip(correct.tolist(), seen.tolist(), strict=True))


def classes_csv(names: Sequence[str], details: Mapping[str, Detail]) -> str:
    """CSV with a row per class: its name, its number of samples, and for each evaluation how many
    are correct and their percentage (empty without samples)."""
    rows: list[dict[str, object]] = [{"class": name} for name in names]
    for evaluation, detail in details.items():
        for row, (correct, seen) in zip(rows, detail.by_class, strict=True):
            row |= {"seen": seen, f"{evaluation} correct": correct}
            row[f"{evaluation} top1"] = 100 * correct / seen if seen else ""
    return csv_table(rows)


def logits_npz(details: Mapping[str, Detail]) -> bytes:
    """An ``.npz`` with ``labels`` int64 [N] and, named by evaluation, logits float32 [N, K]."""
    buffer = io.BytesIO()
    arrays = {name: detail.logits.cpu().numpy() for name, detail in details.items()}
    labels = next(iter(details.values())).labels.cpu().numpy()
    np.savez(buffer, **{"labels": labels, **arrays})  # type: ignore[arg-type]
    return buffer.getvalue()
