"""The stage of a ResNet that a layer belongs to, named as in Fig. 3."""

from __future__ import annotations

import re

_NUMBERED = re.compile(r"(?:^|\.)(?:layer(\d)|stages\.(\d))\.")
_PARTS = re.compile(r"(?:backbone\.(fpn)|roi_heads\.(box|mask)_head)\.")
_STEM = re.compile(r"(?:backbone\.body\.)?(?:[^.]+|(?:conv1|stem)\..+)")


def stage_of(layer: str) -> str:
    """``res1`` (the stem) to ``res5`` for a layer's dotted name; in a detector also ``fpn``,
    ``box`` and ``mask``; empty if it names no stage.

    Knows the names of timm networks and of torchvision's detectors, whose ResNet is
    ``backbone.body``. ``layer1.0.bn1`` and ``stages.0.b1.conv1.bn`` are in ``res2``.
    """
    if numbered := _NUMBERED.search(layer):
        layer_number, stage_number = numbered.groups()
        return f"res{int(layer_number) + 1 if layer_number else int(stage_number) + 2}"
    if part := _PARTS.match(layer):
        return part.group(1) or part.group(2)
    return "res1" if _STEM.fullmatch(layer) else ""
