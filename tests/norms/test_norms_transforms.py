"""PyTorch's transforms and tracers use the formula or raise a clear error."""

from __future__ import annotations

import pytest
import torch
from norm_reference import BACKENDS, randomize
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from sn_imagenet.norms import BatchNorm2d, BatchRenorm2d, GroupNorm2d, MomentNorm2d, SwitchNorm2d

LAYERS = [BatchNorm2d, GroupNorm2d, BatchRenorm2d, SwitchNorm2d]


def pair(layer_class: type[MomentNorm2d], training: bool) -> tuple[MomentNorm2d, MomentNorm2d]:
    """A layer and its copy with the formula backend."""
    layers = layer_class(6, dtype=torch.float64), layer_class(6, dtype=torch.float64)
    for layer in layers:
        randomize(layer)
        layer.train(training)
    layers[1].backend = "formula"
    return layers


def inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, tangent = torch.randn(2, 4, 6, 3, 5, generator=generator, dtype=torch.float64).unbind()
    return x, tangent


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layer_class", LAYERS)
def test_forward_mode_computes_the_tangent(
    layer_class: type[MomentNorm2d], training: bool, grad: bool
) -> None:
    layer, formula = pair(layer_class, training)
    x, tangent = inputs()
    step = 1e-6
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        y = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent)))
        assert y.tangent is not None
        actual = y.tangent.detach()
    formula.momentum = 0.0
    with torch.no_grad():
        slope = (formula(x + step * tangent) - formula(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(actual, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("layer_class", LAYERS)
def test_func_transforms_work_in_evaluation(layer_class: type[MomentNorm2d]) -> None:
    layer, _ = pair(layer_class, False)
    x, tangent = inputs()
    leaf = x.clone().requires_grad_()
    (layer(leaf) * tangent).sum().backward()
    gradient = torch.func.grad(lambda v: (layer(v) * tangent).sum())(x)
    torch.testing.assert_close(gradient, leaf.grad)
    _, slope = torch.func.jvp(layer, (x,), (tangent,))
    torch.testing.assert_close((slope * tangent).sum(), (gradient * tangent).sum())
    batched = torch.func.vmap(layer)(torch.stack([x, tangent]))
    torch.testing.assert_close(batched, torch.stack([layer(x), layer(tangent)]))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layer_class", LAYERS)
def test_traced_layers_equal_the_formula(layer_class: type[MomentNorm2d], training: bool) -> None:
    layer, formula = pair(layer_class, training)
    x, other = inputs()
    layer.momentum = formula.momentum = 0.0
    with torch.no_grad():
        graph = make_fx(layer)(x)
        torch.testing.assert_close(graph(other), formula(other))
        traced = torch.jit.trace(layer, (x,), check_trace=False)
        torch.testing.assert_close(traced(other), formula(other))


def test_transforms_cannot_change_running_statistics() -> None:
    layer, _ = pair(BatchNorm2d, True)
    x, _ = inputs()
    before = layer.running_mean.clone()
    with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
        torch.func.grad(lambda v: layer(v).sum())(x)
    with pytest.raises(RuntimeError, match=r"vmap: .* is not possible"):
        torch.func.vmap(layer)(x[None].repeat(2, 1, 1, 1, 1))
    assert layer.running_mean.equal(before)


@pytest.mark.parametrize("backend", [*BACKENDS, "formula"])
@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_weight_or_bias_may_be_missing(missing: str, backend: str) -> None:
    layer, full = SwitchNorm2d(6, dtype=torch.float64), SwitchNorm2d(6, dtype=torch.float64)
    randomize(layer)
    full.load_state_dict(layer.state_dict())
    setattr(layer, missing, None)
    with torch.no_grad():
        getattr(full, missing).fill_(1.0 if missing == "weight" else 0.0)
    layer.backend = backend
    x, direction = inputs()
    kept = {name: p for name, p in full.named_parameters() if name != missing}
    torch.testing.assert_close(layer(x), full(x))
    torch.testing.assert_close(
        torch.autograd.grad(layer(x), list(layer.parameters()), direction),
        torch.autograd.grad(full(x), list(kept.values()), direction),
    )


@pytest.mark.parametrize("layer_class", [GroupNorm2d, SwitchNorm2d])
def test_a_change_of_num_groups_takes_effect_at_once(layer_class: type[MomentNorm2d]) -> None:
    args = {"omega": ("gn",)} if layer_class is SwitchNorm2d else {}
    changed, expected = layer_class(6, num_groups=3, **args), layer_class(6, num_groups=2, **args)
    x = inputs()[0].float()
    changed(x)
    changed.num_groups = 2
    torch.testing.assert_close(changed(x), expected(x), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 6, 3, 5), (0, 6, 1, 1), (4, 6, 0, 5)])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layer_class", LAYERS)
def test_an_empty_batch_has_zero_gradients(
    layer_class: type[MomentNorm2d], training: bool, shape: tuple[int, ...]
) -> None:
    layer = layer_class(6).train(training)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    x, residual = (torch.zeros(shape, requires_grad=True) for _ in range(2))
    y = layer(x, residual)
    assert y.shape == shape and y.dtype == x.dtype
    y.sum().backward()
    for leaf in (x, residual, *layer.parameters()):
        assert leaf.grad is not None and not leaf.grad.any()
    if training and "num_batches_tracked" in before:
        before["num_batches_tracked"] += 1  # as in nn.BatchNorm2d
    torch.testing.assert_close(dict(layer.named_buffers()), before)
