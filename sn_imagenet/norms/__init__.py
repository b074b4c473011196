"""Normalization layers as small functions of two N x C tables.

Knows nothing of training, settings or Hydra: only how many statistics groups a batch holds and,
where one spans several ranks, a process group to sum tables over. Each layer takes
nn.BatchNorm2d's arguments and works as a timm ``norm_layer``.

A method of one's own is a subclass of MomentNorm2d with a ``combine``. The built-in ones are in
``methods.METHODS``; what is a mixture of in, ln, bn and gn says so as a MixtureNorm2d.

torch.compile, torch.jit.trace, make_fx, torch.func (grad, jvp, vmap) and forward-mode
differentiation get the plain formula in place of the compiled passes, whatever ``backend`` says.
A second derivative needs ``backend = "formula"``; elsewhere it raises.
torch.func refuses, in its own words, to change running statistics that are not among what it
transforms: use eval(), or torch.func.functional_call with them as arguments.
"""

from sn_imagenet.norms.batch_average import BatchAverage
from sn_imagenet.norms.batch_variants import (
    BatchRenorm2d,
    FrozenBatchNorm2d,
    SyncBatchNorm2d,
)
from sn_imagenet.norms.control import (
    StoredStatistics,
    collect_batch_averages,
    importance_weights,
    norm_layers,
    set_replicas,
    stored_statistics,
)
from sn_imagenet.norms.conversion import convert_norm, fold_batch_norm
from sn_imagenet.norms.layers import (
    BatchNorm2d,
    GroupNorm2d,
    InstanceNorm2d,
    LayerNorm2d,
)
from sn_imagenet.norms.mixture import MixtureNorm2d
from sn_imagenet.norms.moment_norm import MomentNorm2d
from sn_imagenet.norms.moments import Moments, Statistics
from sn_imagenet.norms.op import normalize
from sn_imagenet.norms.switch_norm import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d

__all__ = [
    "BatchAverage",
    "BatchNorm2d",
    "BatchRenorm2d",
    "FrozenBatchNorm2d",
    "GroupNorm2d",
    "InstanceNorm2d",
    "LayerNorm2d",
    "MixtureNorm2d",
    "MomentNorm2d",
    "Moments",
    "Statistics",
    "StoredStatistics",
    "SwitchNorm1d",
    "SwitchNorm2d",
    "SwitchNorm3d",
    "SyncBatchNorm2d",
    "collect_batch_averages",
    "convert_norm",
    "fold_batch_norm",
    "importance_weights",
    "norm_layers",
    "normalize",
    "set_replicas",
    "stored_statistics",
]
