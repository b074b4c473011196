"""Convert existing networks: replace batch norm by another method."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

from sn_imagenet.norms.batch_variants import BatchRenorm2d, FrozenBatchNorm2d, SyncBatchNorm2d
from sn_imagenet.norms.methods import METHODS
from sn_imagenet.norms.mixture import BatchNorm2d, InstanceNorm2d
from sn_imagenet.norms.moment_norm import MomentNorm2d
from sn_imagenet.norms.switch_norm import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d

_OTHER_DIMENSIONS: dict[type[nn.Module], type[MomentNorm2d]] = {
    nn.BatchNorm1d: SwitchNorm1d,
    nn.BatchNorm3d: SwitchNorm3d,
}
_TORCH_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_BATCH_NORMS_2D = (*_TORCH_BATCH_NORMS, BatchNorm2d, SyncBatchNorm2d)


class NormAct(nn.Module):
    """The drop and activation that follow a normalization layer in one module, as in timm's
    BatchNormAct2d. They have no parameters, so the state_dict keys are those of the layer."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(super().forward(x)))
        return y


@cache
def with_activation(layer_class: type[MomentNorm2d]) -> type[MomentNorm2d]:
    """``layer_class`` as a :class:`NormAct`."""
    return type(f"{layer_class.__name__}Act", (NormAct, layer_class), {})


def convert_norm(
    network: nn.Module, method: str | type[MomentNorm2d], **arguments: Any
) -> list[str]:
    """Replace every batch norm inside ``network``, in place, by another method.

    Weight, bias and running statistics are kept if the method has them, and so are eps, momentum,
    device, dtype, training mode and requires_grad. Importance weights start at 1.

    Args:
        network: contains nn.BatchNorm1d/2d/3d, nn.SyncBatchNorm or this package's BatchNorm2d,
            perhaps with an activation, as in timm's BatchNormAct2d.
        method: a name in :data:`METHODS` or a class; 1D and 3D layers can only become sn.
        arguments: passed to the method, such as ``omega`` or ``num_groups``.

    Returns:
        The names of the replaced layers, in the network's order; empty if it has no batch norm.

    Raises:
        ValueError: the method is unknown; a 1D or 3D layer would become another method than sn; a
            batch norm is of an unknown class, which may do more; ``network`` is itself a batch
            norm; frozen_bn replaces a layer without running statistics.
    """
    method_class = METHODS.get(method) if isinstance(method, str) else method
    if method_class is None:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    targets = {n: m for n, m in network.named_modules(remove_duplicate=False) if _is_batch_norm(m)}
    classes = {name: _target_class(name, module, method_class) for name, module in targets.items()}
    replacements: dict[nn.Module, nn.Module] = {}  # one layer under two names stays one layer
    for name, old in targets.items():
        if old not in replacements:
            replacements[old] = _replacement(old, classes[name], arguments)
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, replacements[old])
    return list(targets)


def _is_batch_norm(module: nn.Module) -> bool:
    kinds = nn.modules.batchnorm._BatchNorm | BatchNorm2d | BatchRenorm2d
    return isinstance(module, kinds) and not isinstance(module, nn.InstanceNorm2d)


def _activates(module: nn.Module) -> bool:
    timm_names = ("BatchNormAct2d", "SyncBatchNormAct")  # timm is not imported here
    is_act = type(module).__name__ in timm_names and hasattr(module, "act")
    return is_act or (isinstance(module, NormAct) and isinstance(module, BatchNorm2d))


def _target_class(name: str, module: nn.Module, method: type[MomentNorm2d]) -> type[MomentNorm2d]:
    if not name:
        raise ValueError("the network itself is a batch norm, which cannot be replaced in place")
    if method.normalizes_weights:
        raise ValueError(
            f"{method.__name__} changes the convolutions too, not the batch norms alone"
        )
    if _activates(module) or type(module) in _BATCH_NORMS_2D:
        if method is FrozenBatchNorm2d and module.running_mean is None:
            raise ValueError(
                f"{name} has no running statistics: frozen_bn needs them (track_running_stats=True)"
            )
        return with_activation(method) if _activates(module) else method
    if type(module) in _OTHER_DIMENSIONS and method is SwitchNorm2d:
        return _OTHER_DIMENSIONS[type(module)]
    raise ValueError(f"{name} is a {type(module).__name__}: it cannot become a {method.__name__}")


def _replacement(
    old: nn.Module, layer_class: type[MomentNorm2d], arguments: dict[str, Any]
) -> MomentNorm2d:
    assert isinstance(old, nn.modules.batchnorm._BatchNorm | BatchNorm2d)
    reference = old.weight if old.weight is not None else old.running_mean
    new = layer_class(
        old.num_features,
        old.eps,
        old.momentum,
        old.affine,
        old.track_running_stats and layer_class is not InstanceNorm2d,
        device=None if reference is None else reference.device,
        dtype=None if reference is None else reference.dtype,
        bias=old.weight is None or old.bias is not None,
        **arguments,
    )
    initial = new.state_dict()
    shared = {key: value for key, value in old.state_dict().items() if key in initial}
    new.load_state_dict({**initial, **shared})
    for key in ("weight", "bias"):
        parameter = getattr(old, key)
        if parameter is not None and layer_class is not FrozenBatchNorm2d:
            getattr(new, key).requires_grad_(parameter.requires_grad)
    if isinstance(old, MomentNorm2d):
        new.relu = old.relu
    if isinstance(new, NormAct):
        new.drop, new.act = old.get_submodule("drop"), old.get_submodule("act")
    return new.train(old.training)
