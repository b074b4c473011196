"""What the authors' layer computes, written from known facts about it, and checkpoints in their
layout.

Eq. (5) with instance variances divided by HW - 1. Importance weights are ordered in, ln, bn, or in,
ln without BN. In evaluation BN uses the stored statistics.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

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
    """Normalize x [N, C, H, W]. ``weight``, ``bias``: [C]; ``mean_weight``, ``var_weight``: [3], or
    [2] without BN; ``stored``: BN's mean and variance [C], or None for the batch's."""
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


def authors_checkpoint(shapes: Mapping[str, Tensor], bn: bool) -> dict[str, Any]:
    """Random weights for the state_dict ``shapes`` of a ResNet, as saved from DataParallel."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, value in shapes.items():
        layer, _, entry = name.rpartition(".")
        layer = "module." + re.sub(r"\bbn(\d)$", r"sn\1", layer)
        values = torch.rand(value.shape, generator=generator)
        if not re.search(r"sn\d$|downsample\.1$", layer):
            state[f"module.{name}"] = (values - 0.5) * 0.2
        elif entry in ("weight", "bias"):
            state[f"{layer}.{entry}"] = values.add(0.5).view(1, -1, 1, 1)
            for kind in ("mean_weight", "var_weight"):
                state[f"{layer}.{kind}"] = torch.rand(3 if bn else 2, generator=generator)
        elif bn and entry.startswith("running"):
            state[f"{layer}.{entry}"] = values.add(0.5).view(1, -1, 1)
    return {"epoch": 100, "arch": "resnet", "state_dict": state, "best_prec1": torch.tensor(0.0)}
