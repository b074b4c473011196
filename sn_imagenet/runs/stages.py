"""The stage of a ResNet that a layer belongs to, in the words of Fig. 3."""

from __future__ import annotations

import re

_NUMBERED = re.compile(r"(?:^|\.)(?:layer(\d)|stages\.(\d))\.")
_STEM = re.compile(r"(?:backbone\.body\.)?(?:[^.]+|(?:conv1|stem)\..+)")


def stage_of(layer: str) -> str:
    """``res1`` (the stem) to ``res5`` of a layer by its dotted name in a timm network or in
    torchvision's detectors, which keep their ResNet in ``backbone.body``: ``layer1.0.bn1`` and
    ``stages.0.b1.conv1.bn`` are of ``res2``. Empty where the name does not tell.
    """
    if numbered := _NUMBERED.search(layer):
        layer_number, stage_number = numbered.groups()
        return f"res{int(layer_number) + 1 if layer_number else int(stage_number) + 2}"
    return "res1" if _STEM.fullmatch(layer) else ""
