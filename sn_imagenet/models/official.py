"""Convert checkpoints of the authors' repository to the names and shapes of this package.

Their networks differ from timm's only in the names of the normalization layers (sn1 for bn1). Their
layers hold weight and bias as [1, C, 1, 1], and running statistics as [1, C, 1]. The order of the
importance weights is in, ln, bn, as here; without BN (``using_bn: False``) there are two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sn_imagenet.errors import UserError

_NORM_LAYER = re.compile(r"(.*\.)?(?:sn|bn)\d+$|.*\.?downsample\.1$")
_VECTORS = ("weight", "bias", "running_mean", "running_var")


def convert_official(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of an authors' checkpoint, a state_dict, under timm's names.

    Raises:
        UserError: it is not a checkpoint of SN.
    """
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"entry {name!r} is a {type(value).__name__}: expected a tensor")
        layer, _, entry = name.rpartition(".")
        if _NORM_LAYER.match(layer):
            layer = re.sub(r"(^|\.)sn(\d+)$", r"\1bn\2", layer)
            value = value.flatten() if entry in _VECTORS else value
        weights[f"{layer}.{entry}"] = value
        if entry == "running_mean":
            weights[f"{layer}.num_batches_tracked"] = torch.zeros((), dtype=torch.long)
    if "bn1.mean_weight" not in weights:
        raise UserError(
            "it has no entry sn1.mean_weight: expected a checkpoint of the authors' ResNets with "
            "Switchable Normalization"
        )
    return weights


def detect_omega(weights: Mapping[str, Tensor]) -> list[str]:
    """The members of Omega in the checkpoint: in, ln and bn, or only in and ln."""
    return ["in", "ln", "bn"][: len(weights["bn1.mean_weight"])]
