"""The only list of the built-in methods, by name."""

from __future__ import annotations

from sn_imagenet.norms.batch_variants import BatchRenorm2d, FrozenBatchNorm2d, SyncBatchNorm2d
from sn_imagenet.norms.mixture import BatchNorm2d, GroupNorm2d, InstanceNorm2d, LayerNorm2d
from sn_imagenet.norms.moment_norm import MomentNorm2d
from sn_imagenet.norms.rivals import (
    BatchInstanceNorm2d,
    ExtendedBatchNorm2d,
    FilterResponseNorm2d,
    MeanOnlyBatchNorm2d,
    SparseSwitchNorm2d,
    WeightNorm2d,
)
from sn_imagenet.norms.switch_norm import SwitchNorm2d

METHODS: dict[str, type[MomentNorm2d]] = {
    "bn": BatchNorm2d,
    "in": InstanceNorm2d,
    "ln": LayerNorm2d,
    "gn": GroupNorm2d,
    "brn": BatchRenorm2d,
    "sn": SwitchNorm2d,
    "sync_bn": SyncBatchNorm2d,
    "frozen_bn": FrozenBatchNorm2d,
    "ssn": SparseSwitchNorm2d,
    "bin": BatchInstanceNorm2d,
    "frn": FilterResponseNorm2d,
    "ebn": ExtendedBatchNorm2d,
    "mean_bn": MeanOnlyBatchNorm2d,
    "wn": WeightNorm2d,
}
