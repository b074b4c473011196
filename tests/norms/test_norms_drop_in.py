"""The inputs with which PyTorch tests its own layers, through ours of the same names."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.common_modules import module_db

from sn_imagenet.norms import (
    BatchNorm2d,
    BatchRenorm2d,
    GroupNorm2d,
    InstanceNorm2d,
    LayerNorm2d,
    MomentNorm2d,
    SwitchNorm2d,
    SyncBatchNorm2d,
    convert_norm,
)

OURS: dict[type[nn.Module], type[MomentNorm2d]] = {
    nn.BatchNorm2d: BatchNorm2d,
    nn.InstanceNorm2d: InstanceNorm2d,
    nn.GroupNorm: GroupNorm2d,
}
ALL = (
    *(BatchNorm2d, InstanceNorm2d, LayerNorm2d, GroupNorm2d, SwitchNorm2d),
    *(BatchRenorm2d, SyncBatchNorm2d),
)


def cases() -> Iterator[Any]:
    for info in module_db:
        for training in (True, False) if info.module_cls in OURS else ():
            options = {"device": "cpu", "dtype": torch.float64, "requires_grad": True}
            for case in info.module_inputs_func(info, training=training, **options):
                (x,) = case.forward_input.args
                constructor = inspect.signature(info.module_cls).bind(
                    *case.constructor_input.args, **case.constructor_input.kwargs
                )
                constructor.apply_defaults()
                mode = "train" if training else "eval"
                name = f"{info.module_cls.__name__}-{case.desc or 'default'}-{mode}"
                yield pytest.param(
                    info.module_cls, dict(constructor.arguments), x.detach(), training, id=name
                )


CASES = list(cases())


def test_the_list_has_all_three_layers() -> None:
    assert {case.values[0] for case in CASES} == set(OURS)
    assert len(CASES) >= 46  # of PyTorch 2.15


@pytest.mark.parametrize(("module", "arguments", "x", "training"), CASES)
def test_pytorchs_own_inputs_give_its_results(
    module: type[nn.Module], arguments: dict[str, Any], x: Tensor, training: bool
) -> None:
    """GroupNorm's inputs of fewer dimensions are viewed as [N, C, H, 1]."""
    arguments = {**arguments, "dtype": torch.float64}
    theirs = module(**arguments)
    ours_arguments = {"num_features" if k == "num_channels" else k: v for k, v in arguments.items()}
    ours = OURS[module](**ours_arguments)
    for parameter in theirs.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    missing = ours.load_state_dict(theirs.state_dict(), strict=True)
    assert not missing.missing_keys
    results = []
    for layer in (ours.train(training), theirs.train(training)):
        leaf = x.clone().requires_grad_()
        viewed = leaf if layer is theirs or module is not nn.GroupNorm else _as_4d(leaf)
        for _ in range(2):  # running statistics move twice
            y = layer(viewed).view(x.shape)
        leaves = [leaf, *layer.parameters()]
        grads = torch.autograd.grad(y.sin().sum(), leaves)
        results.append((y.detach(), grads, layer.state_dict()))
    torch.testing.assert_close(results[0], results[1])


def _as_4d(x: Tensor) -> Tensor:
    return x.reshape(*x.shape, *[1] * (4 - x.dim()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer_class", ALL)
def test_integers_are_refused(layer_class: type[MomentNorm2d], training: bool) -> None:
    layer = layer_class(3).train(training)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=r"got an input of torch.int64: expected a floating dtype"):
        layer(torch.ones(2, 3, 4, 4, dtype=torch.int64))
    torch.testing.assert_close(layer.state_dict(), before)


@pytest.mark.parametrize("layer_class", [BatchNorm2d, SwitchNorm2d, BatchRenorm2d])
def test_old_state_dicts_have_no_count(layer_class: type[MomentNorm2d]) -> None:
    """As nn.BatchNorm2d: from before version 2 of its state dict."""
    layer = layer_class(3)
    state = dict(layer.state_dict())  # a plain dict has no versions
    state["running_mean"] = torch.full((3,), 2.0)
    del state["num_batches_tracked"]
    layer.load_state_dict(state)
    assert layer.num_batches_tracked == 0 and layer.running_mean.eq(2).all()
    new = copy.copy(layer.state_dict())
    del new["num_batches_tracked"]
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict(new)


@pytest.mark.parametrize("parameters", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer_class", ALL)
def test_parameters_may_have_another_dtype_than_the_input(
    layer_class: type[MomentNorm2d], training: bool, parameters: torch.dtype
) -> None:
    layer = layer_class(3).to(parameters).train(training)
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    reference = copy.deepcopy(layer).float()
    y, expected = layer(x), reference(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected)
    grads = torch.autograd.grad(y.sin().sum(), list(layer.parameters()))
    expected_grads = torch.autograd.grad(expected.sin().sum(), list(reference.parameters()))
    assert all(grad.dtype == parameters for grad in grads)
    close = {"rtol": 0.02, "atol": 1e-3, "check_dtype": False}
    torch.testing.assert_close(grads, expected_grads, **close)
    torch.testing.assert_close(
        dict(layer.named_buffers()), dict(reference.named_buffers()), **close
    )


def test_a_converted_instance_norm_keeps_no_statistics() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, bias=False))
    convert_norm(network, "in")
    assert set(network.state_dict()) == {"0.weight", "0.bias", "1.weight"}
