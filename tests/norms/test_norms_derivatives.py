"""Second derivatives are right, or raise, whichever function of PyTorch asks for them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from norm_reference import BACKENDS, randomize
from torch import Tensor

from sn_imagenet.norms import (
    BatchNorm2d,
    BatchRenorm2d,
    GroupNorm2d,
    MomentNorm2d,
    SwitchNorm2d,
    set_replicas,
)

FORMULA = "formula"


def layers(layer_class: type[MomentNorm2d]) -> tuple[MomentNorm2d, MomentNorm2d]:
    """A layer on the kernels that it chooses, and its copy on the formula."""
    layer = layer_class(6, dtype=torch.float64)
    randomize(layer)
    layer.relu, layer.momentum = True, 0.0
    set_replicas(layer, 2)
    reference = copy.deepcopy(layer)
    reference.backend = FORMULA
    return layer, reference


def activation(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 6, 2, 3, generator=generator, dtype=torch.float64)


def hessian(layer: MomentNorm2d) -> Tensor:
    result: Tensor = torch.autograd.functional.hessian(
        lambda x: (layer(x) ** 3).sum(), activation()
    )
    return result


def gradient_penalty(layer: MomentNorm2d) -> Tensor:
    """The gradients of |dL/dx|^2."""
    x = activation().requires_grad_()
    residual = activation(1).requires_grad_()
    (dx,) = torch.autograd.grad(layer(x, residual).square().sum(), x, create_graph=True)
    inputs = [x, residual, *layer.parameters()]
    grads = torch.autograd.grad(dx.square().sum(), inputs, allow_unused=True)
    return torch.cat([torch.zeros(1) if grad is None else grad.flatten() for grad in grads])


def meta_gradient(layer: MomentNorm2d) -> Tensor:
    """The outer gradient of MAML: through one inner step of SGD on the parameters."""
    names = [name for name, _ in layer.named_parameters()]
    inner = layer(activation()).cos().sum()
    grads = torch.autograd.grad(inner, list(layer.parameters()), create_graph=True)
    fast = [p - 0.1 * g for p, g in zip(layer.parameters(), grads, strict=True)]
    adapted = dict(zip(names, fast, strict=True))
    outer = torch.func.functional_call(layer, adapted, (activation(1),)).sin().sum()
    grads = torch.autograd.grad(outer, list(layer.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def frozen_layer(layer: MomentNorm2d) -> Tensor:
    """The gradient of |dL/dresidual|^2 in a factor of the loss; only the residual needs dL."""
    layer.requires_grad_(False)
    residual, factor = activation(1).requires_grad_(), activation(2).requires_grad_()
    loss = (layer(activation(), residual) * factor).sum()
    (inner,) = torch.autograd.grad(loss, residual, create_graph=True)
    (result,) = torch.autograd.grad(inner.square().sum(), factor)
    return result


USES = (hessian, gradient_penalty, meta_gradient, frozen_layer)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("layer_class", "backend"),
    [(SwitchNorm2d, None), (GroupNorm2d, None), (SwitchNorm2d, "native"), (BatchRenorm2d, None)],
)
def test_second_derivatives_raise_or_are_right(
    layer_class: type[MomentNorm2d], backend: str | None, use: Callable[[MomentNorm2d], Tensor]
) -> None:
    layer, reference = layers(layer_class)
    layer.backend = backend
    with pytest.raises(RuntimeError, match=r"cannot be differentiated: .*backend = \"formula\""):
        use(layer)
    assert use(reference).any()


@pytest.mark.parametrize("backend", [b for b in (*BACKENDS, FORMULA) if b != "native"])
def test_batched_gradients_equal_single_ones(backend: str) -> None:
    """is_grads_batched runs backward under vmap."""
    layer, _ = layers(SwitchNorm2d)
    layer.backend = backend
    x = activation().requires_grad_()
    inputs = [x, *layer.parameters()]
    directions = torch.stack([activation(seed) for seed in range(3)])
    y = layer(x)
    batched = torch.autograd.grad(y, inputs, directions, retain_graph=True, is_grads_batched=True)
    single = [torch.autograd.grad(y, inputs, d, retain_graph=True) for d in directions]
    for actual, *expected in zip(batched, *single, strict=True):
        torch.testing.assert_close(actual, torch.stack(expected))


def test_batched_gradients_of_other_kernels_are_refused() -> None:
    layer, _ = layers(BatchRenorm2d)
    x = activation().requires_grad_()
    with pytest.raises(RuntimeError, match=r"one gradient at a time.*backend = \"formula\""):
        torch.autograd.grad(layer(x), x, torch.stack([x, x]), is_grads_batched=True)


def test_batch_norm_has_pytorchs_second_derivatives() -> None:
    ours, theirs = BatchNorm2d(6, dtype=torch.float64), torch.nn.BatchNorm2d(6, dtype=torch.float64)
    ours.backend = FORMULA
    torch.testing.assert_close(hessian(ours), hessian(theirs))  # type: ignore[arg-type]
