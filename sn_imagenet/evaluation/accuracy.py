"""Top-1, top-5, loss and calibration error as sums over samples; batches are never averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sn_imagenet.distributed import all_reduce_sum

BINS = 15  # of the expected calibration error, as Guo et al. 2017 count it


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Which of [m, K] logits have their label first, second, ... fifth: bool [m, 5], or [m, K] of
    fewer classes. One that is not finite leaves none: topk would put NaN first, wherever it is.
    """
    finite = logits.isfinite().all(dim=1)
    first = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return (first == labels[:, None]) & finite[:, None]


def correct_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of [m, K] logits have their label first, how many among the first five, and how
    many samples have a logit that is not finite, which are right in no case: int64 [3].
    """
    found = correct(logits, labels)
    nonfinite = (~logits.isfinite().all(dim=1)).sum()
    return torch.stack([found[:, 0].sum(), found.sum(), nonfinite])


def confidence_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Of [m, K] finite logits: float64 [3, 15], for each of :data:`BINS` equal intervals of the
    largest probability how many samples fell there, how many of them are correct, and the sum of
    their probabilities.
    """
    confidence, first = logits.double().softmax(dim=1).max(dim=1)
    interval = (confidence * BINS).long().clamp_max(BINS - 1)
    rows = torch.stack([torch.ones_like(confidence), (first == labels).double(), confidence])
    return torch.zeros(3, BINS, dtype=torch.float64, device=logits.device).index_add_(
        1, interval, rows
    )


def calibration_error(counts: Tensor) -> float | None:
    """The expected calibration error in percent (Guo et al. 2017, Eq. 3), of the sums of
    :func:`confidence_counts`; None without a sample.
    """
    seen, correct, confidence = counts
    total = float(seen.sum())
    return 100 * float((correct - confidence).abs().sum()) / total if total else None


@torch.no_grad()
def accuracy(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    autocast: Any,
    observe: Callable[[Tensor, Tensor], None] = lambda *_: None,
) -> dict[str, Any]:
    """Evaluate on all ranks' batches together, each sample counted once.

    Args:
        network: in evaluation mode, the same on every rank.
        batches: this rank's (images [m, 3, S, S], labels [m]) on ``device``; ranks may have
            different numbers.
        device: the network's.
        autocast: makes a context manager for the forward pass.
        observe: is shown the logits [m, K] and labels [m] of each batch.

    Returns:
        ``top1``, ``top5`` in percent, ``top1_correct``, ``top5_correct``, ``nonfinite`` (samples
        with a logit that is not finite, which count as wrong), ``seen``, ``loss``, the mean
        cross entropy (null where it is not finite), and ``ece``, the expected calibration error in
        percent of the samples whose logits are finite (null without one).
    """
    # top-1, top-5, not finite, seen, sum of losses; float64 counts exactly up to 2^53.
    totals = torch.zeros(5, dtype=torch.float64, device=device)
    confidence = torch.zeros(3, BINS, dtype=torch.float64, device=device)
    for images, labels in batches:
        with autocast():
            logits = network(images)
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        totals[:3] += correct_counts(logits, labels)
        totals[3] += len(labels)
        # Summed in float64: the batch's size is not to show in the loss.
        totals[4] += F.cross_entropy(logits.double(), labels, reduction="sum")
        finite = logits.isfinite().all(dim=1)
        confidence += confidence_counts(logits[finite], labels[finite])
        observe(logits, labels)
    top1, top5, nonfinite, seen, loss = all_reduce_sum(totals).tolist()
    return {
        "top1": 100 * top1 / seen,
        "top5": 100 * top5 / seen,
        "top1_correct": int(top1),
        "top5_correct": int(top5),
        "nonfinite": int(nonfinite),
        "seen": int(seen),
        "loss": loss / seen if torch.isfinite(torch.tensor(loss)) else None,
        "ece": calibration_error(all_reduce_sum(confidence)),
    }
