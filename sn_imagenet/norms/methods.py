"""The only list of the built-in methods, by name."""

from __future__ import annotations

from sn_imagenet.norms import batch_variants, mixture, rivals
from sn_imagenet.norms.moment_norm import MomentNorm2d
from sn_imagenet.norms.switch_norm import SwitchNorm2d

METHODS: dict[str, type[MomentNorm2d]] = {
    "bn": mixture.BatchNorm2d,
    "in": mixture.InstanceNorm2d,
    "ln": mixture.LayerNorm2d,
    "gn": mixture.GroupNorm2d,
    "brn": batch_variants.BatchRenorm2d,
    "sn": SwitchNorm2d,
    "sync_bn": batch_variants.SyncBatchNorm2d,
    "frozen_bn": batch_variants.FrozenBatchNorm2d,
    "ssn": rivals.SparseSwitchNorm2d,
    "bin": rivals.BatchInstanceNorm2d,
    "frn": rivals.FilterResponseNorm2d,
    "ebn": rivals.ExtendedBatchNorm2d,
    "mean_bn": rivals.MeanOnlyBatchNorm2d,
    "wn": rivals.WeightNorm2d,
}
