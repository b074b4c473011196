"""The built-in normalization methods by name, for readers of runs that do not import torch."""

from __future__ import annotations

from typing import Any

# A test compares this with sn_imagenet.norms.methods.METHODS.
BUILT_IN = {
    "bn": "BatchNorm2d",
    "in": "InstanceNorm2d",
    "ln": "LayerNorm2d",
    "gn": "GroupNorm2d",
    "brn": "BatchRenorm2d",
    "sn": "SwitchNorm2d",
    "sync_bn": "SyncBatchNorm2d",
    "frozen_bn": "FrozenBatchNorm2d",
    "ssn": "SparseSwitchNorm2d",
    "bin": "BatchInstanceNorm2d",
    "frn": "FilterResponseNorm2d",
    "ebn": "ExtendedBatchNorm2d",
    "mean_bn": "MeanOnlyBatchNorm2d",
    "wn": "WeightNorm2d",
}
_PACKAGE = "sn_imagenet.norms."
IMPORTED = " (imported)"
"""Suffix of the method name of weights that were trained elsewhere."""


def method_of(name: str, target: Any) -> str:
    """The method under which tables list a run: its ``norm.name``, or ``bn (my.Class)`` if
    ``target`` is not the class of that built-in name. A target of None stands for the built-in one.
    """
    expected = BUILT_IN.get(name)
    if expected is None or target is None:
        return name
    package, _, class_name = str(target).rpartition(".")
    built_in = class_name == expected and f"{package}.".startswith(_PACKAGE)
    return name if built_in else f"{name} ({target})"
