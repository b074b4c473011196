"""Switchable Normalization and other normalization layers for PyTorch.

``SwitchNorm2d(64)`` replaces ``nn.BatchNorm2d(64)``. The package also has batch, instance, layer
and group normalization, batch renormalization, synchronized and frozen batch norm, and rivals of SN
(``methods.METHODS`` lists them). Every layer takes nn.BatchNorm2d's arguments and works as a timm
``norm_layer``. ``convert_norm`` replaces the batch norms of an existing network. A method is a
small function of two [N, C] tables of means and variances. For a method of your own, subclass
MomentNorm2d and write ``combine``; for a mixture of in, ln, bn and gn, subclass MixtureNorm2d. The
package imports only torch and sn_imagenet.native, which compiles its C++.

Limits:

- Under torch.compile, torch.jit.trace, make_fx, torch.func (grad, jvp, vmap) and forward-mode
  differentiation the layers run as plain PyTorch operators, whatever ``backend`` says.
- Second derivatives need ``backend = "formula"``; otherwise they raise.
- torch.func raises if a layer in training mode updates running statistics that are not among the
  transformed inputs: call eval(), or pass them to torch.func.functional_call.
"""

from sn_imagenet.norms.batch_variants import BatchRenorm2d, FrozenBatchNorm2d, SyncBatchNorm2d
from sn_imagenet.norms.control import (
    StoredStatistics,
    collect_batch_averages,
    evalnorm,
    importance_weights,
    norm_layers,
    set_replicas,
    stored_statistics,
)
from sn_imagenet.norms.conversion import convert_norm
from sn_imagenet.norms.mixture import (
    BatchNorm2d,
    GroupNorm2d,
    InstanceNorm2d,
    LayerNorm2d,
    MixtureNorm2d,
)
from sn_imagenet.norms.moment_norm import MomentNorm2d, Replicas
from sn_imagenet.norms.moments import BatchAverage, Moments, Statistics
from sn_imagenet.norms.op import normalize
from sn_imagenet.norms.rivals import (
    BatchInstanceNorm2d,
    ExtendedBatchNorm2d,
    FilterResponseNorm2d,
    MeanOnlyBatchNorm2d,
    SparseSwitchNorm2d,
    WeightNorm2d,
)
from sn_imagenet.norms.switch_norm import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d

__all__ = [
    "BatchAverage",
    "BatchInstanceNorm2d",
    "BatchNorm2d",
    "BatchRenorm2d",
    "ExtendedBatchNorm2d",
    "FilterResponseNorm2d",
    "FrozenBatchNorm2d",
    "GroupNorm2d",
    "InstanceNorm2d",
    "LayerNorm2d",
    "MeanOnlyBatchNorm2d",
    "MixtureNorm2d",
    "MomentNorm2d",
    "Moments",
    "Replicas",
    "SparseSwitchNorm2d",
    "Statistics",
    "StoredStatistics",
    "SwitchNorm1d",
    "SwitchNorm2d",
    "SwitchNorm3d",
    "SyncBatchNorm2d",
    "WeightNorm2d",
    "collect_batch_averages",
    "convert_norm",
    "evalnorm",
    "importance_weights",
    "norm_layers",
    "normalize",
    "set_replicas",
    "stored_statistics",
]
