"""Checkpoints of the authors' repository in the names and shapes of this package.

Their networks are timm's but for the names of the normalization layers (sn1 for bn1), and their
layers hold weight and bias as [1, C, 1, 1], running statistics as [1, C, 1]. Importance weights are
in the order in, ln, bn, as here; without BN (``using_bn: False``) there are two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sn_imagenet.errors import UserError

_OF_A_LAYER = re.compile(r"(.*\.)?(?:sn|bn)\d+$|.*\.?downsample\.1$")
_VECTORS = ("weight", "bias", "running_mean", "running_var")


def from_official(checkpoint: Any) -> dict[str, Tensor]:
    """The weights of ``checkpoint``, what ``torch.load`` gives of the authors' file: a state_dict,
    or a dict that holds one under ``state_dict``; names may begin with ``module.``.

    Raises:
        UserError: it is none of SN.
    """
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else {}
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"entry {name!r} is a {type(value).__name__}: expected a tensor")
        layer, _, entry = str(name).removeprefix("module.").rpartition(".")
        if _OF_A_LAYER.match(layer):
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


def omega_of(weights: Mapping[str, Tensor]) -> list[str]:
    """The members whose importance weights the checkpoint holds: three, or two without BN."""
    return ["in", "ln", "bn"][: len(weights["bn1.mean_weight"])]
