"""Positions of normalization layers in their network, in the terms of Fig. 3."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sn_imagenet.norms import norm_layers
from sn_imagenet.runs import stage_of


@dataclass(frozen=True)
class LayerPosition:
    """``stage``: see :func:`~sn_imagenet.runs.stage_of`. ``conv``: kernel size of the convolution
    before the layer (7x7, 3x3, 1x1), or ``shortcut``.
    """

    stage: str
    conv: str


def layer_positions(network: nn.Module) -> dict[str, LayerPosition]:
    """The position of each normalization layer by name, in network order."""
    layers = norm_layers(network)
    positions: dict[str, LayerPosition] = {}
    kernel = ""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            kernel = "x".join(map(str, module.kernel_size))
        elif name in layers:
            shortcut = "downsample" in name or "shortcut" in name
            positions[name] = LayerPosition(stage_of(name), "shortcut" if shortcut else kernel)
    return positions
