"""Top-1 and top-5 as counts of correct and seen; accuracies of batches are never averaged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sn_imagenet.replicas import sum_over_ranks


def correct_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of [m, K] logits have their label first, how many among the first five, and how
    many samples have a logit that is not finite: int64 [3]. The last are right in no case: topk
    would put NaN first, wherever it is.
    """
    finite = logits.isfinite().all(dim=1)
    first = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = (first == labels[:, None]) & finite[:, None]
    return torch.stack([hits[:, 0].sum(), hits.sum(), (~finite).sum()])


@torch.no_grad()
def accuracy(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    autocast: Any,
) -> dict[str, Any]:
    """Evaluate on all ranks' batches together, each sample counted once.

    Args:
        network: in evaluation mode, the same on every rank.
        batches: this rank's (images [m, 3, S, S], labels [m]) on ``device``; ranks may have
            different numbers.
        device: the network's.
        autocast: makes a context manager for the forward pass.

    Returns:
        ``top1``, ``top5`` in percent, ``top1_correct``, ``top5_correct``, ``nonfinite`` (samples
        with a logit that is not finite, which count as wrong), ``seen``, and ``loss``, the mean
        cross entropy (null where it is not finite).
    """
    # top-1, top-5, not finite, seen, sum of losses; float64 counts exactly up to 2^53.
    totals = torch.zeros(5, dtype=torch.float64, device=device)
    for images, labels in batches:
        with autocast():
            logits = network(images)
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        totals[:3] += correct_counts(logits, labels)
        totals[3] += len(labels)
        totals[4] += F.cross_entropy(logits, labels, reduction="sum")
    top1, top5, nonfinite, seen, loss = sum_over_ranks(totals).tolist()
    return {
        "top1": 100 * top1 / seen,
        "top5": 100 * top5 / seen,
        "top1_correct": int(top1),
        "top5_correct": int(top5),
        "nonfinite": int(nonfinite),
        "seen": int(seen),
        "loss": loss / seen if torch.isfinite(torch.tensor(loss)) else None,
    }
