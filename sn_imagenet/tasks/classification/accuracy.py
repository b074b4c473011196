"""Top-1, top-5, loss and calibration error as sums over samples, not as means of batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.distributed import all_reduce_sum, print_rank0
from sn_imagenet.tasks.classification.detail import Detail, correct

BINS = 15  # bins of the expected calibration error, as in Guo et al. 2017


def correct_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """The numbers of top-1 correct, top-5 correct and non-finite rows of logits [m, K]: int64 [3].
    A row is non-finite if any of its logits is, and counts as wrong.
    """
    hits = correct(logits, labels)
    nonfinite = (~logits.isfinite().all(dim=1)).sum()
    return torch.stack([hits[:, 0].sum(), hits.sum(), nonfinite])


class AccuracyEvaluator:
    """Evaluates a classifier on batches of images; each sample counts once.

    Args:
        device: of the network.
        detail: collects results by class and sample; None for none.
    """

    def __init__(self, device: torch.device, detail: Detail | None = None) -> None:
        self.detail = detail
        # Top-1, top-5, non-finite, seen, sum of losses. float64 counts exactly up to 2^53.
        self._totals = torch.zeros(5, dtype=torch.float64, device=device)
        # By bin of the largest probability: the sum of (correct - largest probability).
        self._gaps = torch.zeros(BINS, dtype=torch.float64, device=device)

    def update(self, forward: Callable[..., Tensor], batch: ImageBatch) -> None:
        """Add the images [m, 3, S, S] and labels [m] of a batch."""
        images, labels = batch
        logits = forward(images)
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        self._totals[:3] += correct_counts(logits, labels)
        self._totals[3] += len(labels)
        # Summed in float64, so that the loss does not depend on the batch size.
        self._totals[4] += F.cross_entropy(logits.double(), labels, reduction="sum")
        finite = logits.isfinite().all(dim=1)
        confidence, first = logits[finite].double().softmax(dim=1).max(dim=1)
        bins = (confidence * BINS).long().clamp_max(BINS - 1)
        self._gaps.index_add_(0, bins, (first == labels[finite]).double() - confidence)
        if self.detail is not None:
            self.detail.observe(logits, labels)

    def gather(self) -> None:
        """Sum the counts of all ranks. Collective."""
        all_reduce_sum(self._totals)
        all_reduce_sum(self._gaps)
        if self.detail is not None:
            self.detail.gather()

    def finish(self) -> dict[str, Any]:
        """The results.

        ``top1``, ``top5`` in percent; the counts ``top1_correct``, ``top5_correct``, ``nonfinite``
        (samples with a non-finite logit, counted as wrong) and ``seen``; ``loss``, the mean cross
        entropy (None if not finite); and ``ece``, the expected calibration error in percent over
        the samples with finite logits (Guo et al. 2017, Eq. 3; None without any).
        """
        top1, top5, nonfinite, seen, loss = self._totals.tolist()
        finite = seen - nonfinite
        if nonfinite:
            print_rank0(
                f"warning: the network's output is not finite for {int(nonfinite)} of {int(seen)} "
                "samples; they count as wrong"
            )
        return {
            "top1": 100 * top1 / seen,
            "top5": 100 * top5 / seen,
            "top1_correct": int(top1),
            "top5_correct": int(top5),
            "nonfinite": int(nonfinite),
            "seen": int(seen),
            "loss": loss / seen if math.isfinite(loss) else None,
            "ece": 100 * self._gaps.abs().sum().item() / finite if finite else None,
        }
