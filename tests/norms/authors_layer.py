"""The layer as the authors' code computes it, written from the facts that are known of it.

Eq. (5) from instances whose variance is divided by HW - 1; importance weights in the order in, ln,
bn, or in, ln without BN; in evaluation BN's statistics are the stored ones.
"""

from __future__ import annotations

import torch
from torch import Tensor


def authors_layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    stored: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``weight`` and ``bias`` [C]; three logits each, or two without BN; ``stored``: BN's mean and
    variance [C], None for the batch's own."""
    n, c, h, w = x.shape
    values = x.reshape(n, c, h * w)
    mean_in = values.sum(2, keepdim=True) / (h * w)
    var_in = ((values - mean_in) ** 2).sum(2, keepdim=True) / (h * w - 1)
    square = var_in + mean_in**2  # [N, C, 1]
    mean_ln = mean_in.mean(1, keepdim=True)
    means, variances = [mean_in, mean_ln], [var_in, square.mean(1, keepdim=True) - mean_ln**2]
    if len(mean_weight) == 3:
        if stored is None:
            mean_bn = mean_in.mean(0, keepdim=True)
            var_bn = square.mean(0, keepdim=True) - mean_bn**2
        else:
            mean_bn, var_bn = (table.reshape(1, c, 1) for table in stored)
        means.append(mean_bn)
        variances.append(var_bn)
    mean = sum(p * m for p, m in zip(torch.softmax(mean_weight, 0), means, strict=True))
    var = sum(p * v for p, v in zip(torch.softmax(var_weight, 0), variances, strict=True))
    normal = (values - mean) / (var + eps).sqrt()
    return (normal * weight.reshape(1, c, 1) + bias.reshape(1, c, 1)).reshape(x.shape)
