"""A user's normalization layer needs only a ``combine`` method."""

from __future__ import annotations

import pytest
import torch
from norm_reference import BACKENDS, gradients, randomize
from torch import Tensor, nn

from sn_imagenet.norms import (
    BatchNorm2d,
    BatchRenorm2d,
    MomentNorm2d,
    Moments,
    Statistics,
    set_replicas,
)


class HalfBatchNorm2d(MomentNorm2d):
    """Interpolates between instance and batch statistics by a learned share per channel."""

    stores_statistics = True

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.share = nn.Parameter(torch.full_like(self.weight, 0.5))

    def combine(self, moments: Moments) -> Statistics:
        pairs = zip(moments.instance(), self.batch_statistics(moments), strict=True)
        mean, var = (sample + self.share * (batch - sample) for sample, batch in pairs)
        return mean, var


def shifted(base: type[MomentNorm2d]) -> type[MomentNorm2d]:
    """A built-in method with another ``combine``, in training and in evaluation."""

    class Shifted(base):
        def combine(self, moments: Moments) -> Statistics:
            mean, var = super().combine(moments)
            return mean + 1, var

    return Shifted


@pytest.mark.parametrize("backend", [*BACKENDS, "formula"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_layer_with_its_own_combine(backend: str, replicas: int) -> None:
    torch.manual_seed(0)  # with other seeds a share above 1 may make a variance negative
    layer = HalfBatchNorm2d(6).double()
    randomize(layer)
    layer.backend = backend
    set_replicas(layer, replicas)
    x = torch.randn(4, 6, 3, 5, dtype=torch.float64, requires_grad=True)
    expected = torch.empty_like(x)
    share = layer.share.view(1, -1, 1, 1)
    for r in range(replicas):
        samples = x[r::replicas]
        var_in, mean_in = torch.var_mean(samples, (2, 3), correction=0, keepdim=True)
        var_bn, mean_bn = torch.var_mean(samples, (0, 2, 3), correction=0, keepdim=True)
        mean, var = mean_in.lerp(mean_bn, share), var_in.lerp(var_bn, share)
        expected[r::replicas] = (samples - mean) / torch.sqrt(var + layer.eps)
    expected = expected * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    inputs = [x, *layer.parameters()]
    torch.testing.assert_close(gradients(y, inputs), gradients(expected, inputs))
    assert layer.num_batches_tracked == 1
    assert layer.eval()(x).isfinite().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", [BatchNorm2d, BatchRenorm2d])
def test_an_overridden_combine_is_used(method: type[MomentNorm2d], training: bool) -> None:
    ours, base = shifted(method)(6).train(training), method(6).train(training)
    x: Tensor = torch.randn(4, 6, 3, 5)
    var = x.var((0, 2, 3), correction=0) if training else torch.ones(6)
    shift = torch.rsqrt(var + ours.eps)
    torch.testing.assert_close(ours(x), base(x) - shift.view(1, -1, 1, 1))


class BatchOnly2d(MomentNorm2d):
    """BN's statistics through an overridden ``combine``."""

    stores_statistics = True

    def combine(self, moments: Moments) -> Statistics:
        return self.batch_statistics(moments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_of_a_frozen_layer_with_stored_statistics(backend: str) -> None:
    """x has a gradient although no table has one."""
    layer = BatchOnly2d(6).eval().requires_grad_(False)
    layer.backend = backend
    randomize(layer)
    x = torch.randn(4, 6, 3, 5, requires_grad=True)
    direction = torch.randn_like(x)
    (dx,) = torch.autograd.grad(layer(x), x, direction)
    scale = (layer.weight * torch.rsqrt(layer.running_var + layer.eps)).view(1, -1, 1, 1)
    torch.testing.assert_close(dx, direction * scale)
