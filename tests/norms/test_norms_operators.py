"""The compiled operators, as PyTorch's own checks of custom operators see them."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from norm_reference import BACKENDS, randomize
from torch import Tensor

from sn_imagenet.norms import SwitchNorm2d, set_replicas
from sn_imagenet.norms.kernels import CPP

pytestmark = pytest.mark.skipif("cpp" not in BACKENDS, reason="no C++ compiler")
LAYOUTS = (torch.contiguous_format, torch.channels_last)
FROZEN = ("x", "weight", "bias", "logits", "all parameters", "mean_weight")


def activation(seed: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 6, 5, 3, generator=generator)
    return x.to(memory_format=layout).requires_grad_()


def mixture_arguments(relu: bool, residual: bool, stored: bool, plain: bool) -> tuple[Any, ...]:
    """Those of SN on four replicas; of a BN without parameters and statistics if ``plain``."""
    layout = torch.contiguous_format if plain else torch.channels_last
    added = activation(1, layout) if residual else None
    if plain:
        absent = (None,) * 6
        return (activation(0), added, *absent, [2], 1, 4, 1e-5, relu, False, None, 0.0)
    tensors = [torch.rand(size).add_(0.5).requires_grad_() for size in (6, 6, 4, 4)]
    running = torch.randn(6), torch.rand(6)
    momentum = None if stored else 0.1
    rest = ([0, 1, 2, 3], 3, 4, 1e-5, relu, stored, momentum, 1.1)
    return (activation(0, layout), added, *tensors, *running, *rest)


@pytest.mark.parametrize(("relu", "residual", "stored"), list(product((False, True), repeat=3)))
@pytest.mark.parametrize("plain", [False, True])
def test_opcheck_passes_for_a_layer(relu: bool, residual: bool, stored: bool, plain: bool) -> None:
    arguments = mixture_arguments(relu, residual, stored, plain)
    torch.library.opcheck(torch.ops.sn_imagenet.mixture.default, arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_passes_for_the_kernels(layout: torch.memory_format) -> None:
    ops = torch.ops.sn_imagenet
    x, grad, y = (activation(seed, layout).detach() for seed in range(3))
    tables, mean, line = torch.rand(3, 8, 6), torch.rand(8, 6), torch.rand(2, 8, 6)
    torch.library.opcheck(ops.moments.default, (x,))
    torch.library.opcheck(ops.affine.default, (x, tables, True, y))
    torch.library.opcheck(ops.gradient_sums.default, (grad, x, mean, tables, True, None))
    torch.library.opcheck(ops.gradient_sums.default, (grad, x, mean, tables, False, y))
    torch.library.opcheck(ops.input_gradient.default, (grad, x, mean, tables, line, False))


@pytest.mark.parametrize("residual", [False, True])
def test_opcheck_passes_for_backward(residual: bool) -> None:
    ops = torch.ops.sn_imagenet
    arguments = mixture_arguments(relu=True, residual=residual, stored=False, plain=False)
    y, tables = (tensor.detach() for tensor in ops.mixture(*arguments))
    x, *parameters = (tensor.detach() for tensor in (arguments[0], *arguments[2:6]))
    options = (*arguments[8:11], *arguments[12:14], [True, True, False, True])
    given = torch.randn_like(y), x, y if residual else None, tables, *parameters, *options
    torch.library.opcheck(ops.mixture_backward.default, given)


def test_wrong_memory_is_an_error() -> None:
    x, wide = activation(0).detach(), torch.zeros(8, 6, 5, 3)
    tables = torch.zeros(3, 8, 6)
    with pytest.raises(RuntimeError, match="contiguous or channels_last as x"):
        CPP.affine(x, tables, False, wide.to(memory_format=torch.channels_last))
    with pytest.raises(RuntimeError, match="expected scalar type Float but found Double"):
        CPP.affine(x, tables.double())


def test_torch_compile_sees_through_the_operator() -> None:
    """A function that calls it is one graph, with the gradients of eager mode."""

    def call(*arguments: Any) -> Tensor:
        y: Tensor = torch.ops.sn_imagenet.mixture(*arguments)[0]
        return y.sin().sum()

    arguments = mixture_arguments(relu=True, residual=True, stored=True, plain=False)
    leaves = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(call(*arguments), leaves)
    torch.testing.assert_close(torch.autograd.grad(compiled(*arguments), leaves), expected)


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_only_the_wanted_gradients_are_computed(frozen: str, residual: bool, affine: bool) -> None:
    results = []
    for backend in ("cpp", "native"):
        layer = SwitchNorm2d(6, affine=affine)
        randomize(layer)
        layer.backend, layer.relu = backend, True
        set_replicas(layer, 4)
        for name, parameter in layer.named_parameters():
            logits = frozen == "logits" and name in ("mean_weight", "var_weight")
            parameter.requires_grad_(not (logits or frozen in (name, "all parameters")))
        x = activation(0, torch.channels_last).requires_grad_(frozen != "x")
        added = activation(1) if residual else None
        y = layer(x, added)
        if y.requires_grad:
            (y * torch.arange(y.numel()).view_as(y).cos()).sum().backward()
        leaves = [x, *layer.parameters(), *([added] if residual else [])]
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results, strict=True):
        assert (ours is None) == (theirs is None)
        torch.testing.assert_close(ours, theirs)


def test_a_weight_changed_before_backward_is_an_error() -> None:
    layer = SwitchNorm2d(4)
    y = layer(torch.randn(2, 4, 3, 3, requires_grad=True))
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_no_graph_is_recorded_under_no_grad() -> None:
    with torch.no_grad():
        assert not SwitchNorm2d(4)(torch.randn(2, 4, 3, 3)).requires_grad
