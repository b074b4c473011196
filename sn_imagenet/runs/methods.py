"""The built-in normalizers by their names, for readers of runs that do without torch."""

from __future__ import annotations

from typing import Any

# As sn_imagenet.norms.methods.METHODS, which a test compares.
BUILT_IN = {
    "bn": "BatchNorm2d",
    "in": "InstanceNorm2d",
    "ln": "LayerNorm2d",
    "gn": "GroupNorm2d",
    "brn": "BatchRenorm2d",
    "sn": "SwitchNorm2d",
    "sync_bn": "SyncBatchNorm2d",
    "frozen_bn": "FrozenBatchNorm2d",
}
_PACKAGE = "sn_imagenet.norms."
IMPORTED = " (imported)"
"""Ends the name of the normalizer of weights that were trained elsewhere."""


def method_of(name: str, target: Any) -> str:
    """The method that a run counts for in tables: its ``norm.name``, but ``bn (my.Class)`` where a
    built-in name stands for another class than its own. None as a target is not told: the name's.
    """
    own = BUILT_IN.get(name)
    if own is None or target is None:
        return name
    package, _, class_name = str(target).rpartition(".")
    built_in = class_name == own and f"{package}.".startswith(_PACKAGE)
    return name if built_in else f"{name} ({target})"
