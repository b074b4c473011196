"""Top-1, top-5, loss and calibration error as sums over samples, not as means of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sn_imagenet.distributed import all_reduce_sum

BINS = 15  # bins of the expected calibration error, as in Guo et al. 2017


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the label of each row of logits [m, K] ranks first, second, ... fifth: bool [m, 5],
    or [m, K] for fewer classes. Rows with a non-finite logit are all False, since topk ranks NaN
    first.
    """
    finite = logits.isfinite().all(dim=1)
    first = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return (first == labels[:, None]) & finite[:, None]


def correct_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """The numbers of top-1 correct, top-5 correct and non-finite rows of logits [m, K]: int64 [3].
    A row is non-finite if any of its logits is, and counts as wrong.
    """
    hits = correct(logits, labels)
    nonfinite = (~logits.isfinite().all(dim=1)).sum()
    return torch.stack([hits[:, 0].sum(), hits.sum(), nonfinite])


def confidence_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Bin finite logits [m, K] by their largest probability into :data:`BINS` equal intervals.

    Returns float64 [3, 15]: per bin the number of samples, the number of correct ones, and the sum
    of their largest probabilities.
    """
    confidence, first = logits.double().softmax(dim=1).max(dim=1)
    bins = (confidence * BINS).long().clamp_max(BINS - 1)
    rows = torch.stack([torch.ones_like(confidence), (first == labels).double(), confidence])
    return torch.zeros(3, BINS, dtype=torch.float64, device=logits.device).index_add_(1, bins, rows)


def calibration_error(counts: Tensor) -> float | None:
    """The expected calibration error in percent (Guo et al. 2017, Eq. 3), from summed
    :func:`confidence_counts`; None without samples.
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
    """Evaluate on the batches of all ranks; each sample counts once.

    Args:
        network: in evaluation mode, the same on every rank.
        batches: this rank's (images [m, 3, S, S], labels [m]) on ``device``; ranks may have
            different numbers of batches.
        device: the network's device.
        autocast: returns a context manager for the forward pass.
        observe: called with the logits [m, K] and labels [m] of each batch.

    Returns:
        ``top1``, ``top5`` in percent; the counts ``top1_correct``, ``top5_correct``, ``nonfinite``
        (samples with a non-finite logit, counted as wrong) and ``seen``; ``loss``, the mean cross
        entropy (None if not finite); and ``ece``, the expected calibration error in percent over
        the samples with finite logits (None without any).
    """
    # Top-1, top-5, non-finite, seen, sum of losses. float64 counts exactly up to 2^53.
    totals = torch.zeros(5, dtype=torch.float64, device=device)
    confidence = torch.zeros(3, BINS, dtype=torch.float64, device=device)
    for images, labels in batches:
        with autocast():
            logits = network(images)
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        totals[:3] += correct_counts(logits, labels)
        totals[3] += len(labels)
        # Summed in float64, so that the loss does not depend on the batch size.
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
