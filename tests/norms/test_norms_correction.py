"""``instance_correction=1`` gives the divisor of the authors' code in every backend and mode."""

from __future__ import annotations

import pytest
import torch
from authors_layer import authors_layer
from norm_reference import BACKENDS, activation, gradients, randomize
from torch import Tensor

from sn_imagenet.norms import SwitchNorm2d, SwitchNorm3d, set_replicas


def build_layer(channels: int, *, training: bool, backend: str, bn: bool = True) -> SwitchNorm2d:
    omega = ("in", "ln", "bn") if bn else ("in", "ln")
    layer = SwitchNorm2d(channels, omega=omega, instance_correction=1, dtype=torch.float64)
    layer.backend = backend
    randomize(layer)
    if bn:
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(4))
        layer.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(5))
    return layer.train(training)


def parameters(layer: SwitchNorm2d) -> list[Tensor]:
    return [layer.weight, layer.bias, layer.mean_weight, layer.var_weight]


@pytest.mark.parametrize("bn", [True, False], ids=["with bn", "without"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("backend", [*BACKENDS, "formula"])
def test_the_layer_equals_the_authors(backend: str, training: bool, bn: bool) -> None:
    x = activation(4, 6, 3, 2)
    layer = build_layer(6, training=training, backend=backend, bn=bn)
    stored = None
    if bn and not training:
        stored = (layer.running_mean.clone(), layer.running_var.clone())
    expected = authors_layer(x, *parameters(layer), stored)
    actual = layer(x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    inputs = [x, *parameters(layer)]
    torch.testing.assert_close(
        gradients(actual, inputs), gradients(expected, inputs), rtol=1e-10, atol=1e-11
    )
    plain = SwitchNorm2d(6, omega=layer.omega, dtype=torch.float64).train(training)
    plain.load_state_dict(layer.state_dict())
    assert (plain(x) - expected).abs().max() > 1e-3  # without the option they differ


@pytest.mark.parametrize("backend", BACKENDS)
def test_replicas_relu_and_residual_equal_the_authors(backend: str) -> None:
    x = activation(4, 6, 3, 2)
    layer = build_layer(6, training=True, backend=backend)
    layer.relu = True
    set_replicas(layer, 2)
    expected = torch.empty_like(x)
    for replica in range(2):
        expected[replica::2] = authors_layer(x[replica::2], *parameters(layer))
    torch.testing.assert_close(layer(x, x), torch.relu(expected + x), rtol=1e-12, atol=1e-12)


def test_the_running_variance_uses_the_corrected_instances() -> None:
    x = activation(4, 6, 3, 2)
    layer = build_layer(6, training=True, backend="native")
    before = layer.running_var.clone()
    layer(x)
    instances = x.var((2, 3), correction=1) + x.mean((2, 3)) ** 2
    batch = instances.mean(0) - x.mean((0, 2, 3)) ** 2
    torch.testing.assert_close(layer.running_var, 0.9 * before + 0.1 * batch.detach())


def test_the_3d_layer_divides_by_all_values_minus_one() -> None:
    x = activation(4, 3, 4, 6)
    layer = SwitchNorm3d(3, instance_correction=1, dtype=torch.float64)
    expected = authors_layer(x, *parameters(layer))
    torch.testing.assert_close(layer(x.view(4, 3, 2, 2, 6)).view(x.shape), expected)


def test_invalid_corrections_are_errors() -> None:
    with pytest.raises(ValueError, match=r"got maps of 1 value: instance_correction=1 needs more"):
        SwitchNorm2d(3, instance_correction=1)(torch.randn(2, 3, 1, 1))
    with pytest.raises(ValueError, match=r"instance_correction=2: expected 0 or 1"):
        SwitchNorm2d(3, instance_correction=2)
