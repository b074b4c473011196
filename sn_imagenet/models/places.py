"""Where a normalisation layer stands in its network, in the words of Fig. 3."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from sn_imagenet.norms import norm_layers


@dataclass(frozen=True)
class Place:
    """``stage``: res1 (the stem) to res5, empty where the names do not tell. ``place``: the
    convolution that the layer follows (7x7, 3x3, 1x1), or ``shortcut``.
    """

    stage: str
    place: str


def places(network: nn.Module) -> dict[str, Place]:
    """The place of each normalisation layer by name, in network order."""
    layers = norm_layers(network)
    found: dict[str, Place] = {}
    kernel = ""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            kernel = "x".join(map(str, module.kernel_size))
        elif name in layers:
            shortcut = "downsample" in name or "shortcut" in name
            found[name] = Place(_stage(name), "shortcut" if shortcut else kernel)
    return found


def _stage(name: str) -> str:
    numbered = re.search(r"(?:layer|stages\.)(\d+)", name)
    if numbered is None:
        return "res1" if "." not in name else ""
    first = 1 if name.startswith("layer") else 2
    return f"res{int(numbered.group(1)) + first}"
