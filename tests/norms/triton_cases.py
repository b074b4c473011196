"""The Triton kernels against the float64 formula; run by test_norms_triton.py in a process of its
own, where TRITON_INTERPRET=1 was set before Triton was imported, or as they are on a CUDA device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from norm_reference import fig7, randomize
from torch import Tensor

from sn_imagenet.norms import (
    BatchNorm2d,
    BatchRenorm2d,
    GroupNorm2d,
    InstanceNorm2d,
    LayerNorm2d,
    PooledNorm2d,
    SwitchNorm2d,
    set_replicas,
    triton_mixture,
)
from sn_imagenet.norms.backends import BACKENDS
from sn_imagenet.norms.backends.triton_backend import MOST_SPLITS, _Launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
}
SHAPES = [
    (2, 3, 1, 1),
    (1, 3, 7, 7),
    (2, 65, 7, 7),
    (2, 48, 5, 3),
    (1, 5, 1, 17),
    (1, 2, 67, 61),  # several splits, the last one short, in both layouts
    (1, 130, 12, 9),
]


def check(
    x: Tensor,
    tolerance: float,
    eps: float = 1e-2,
    omega: Sequence[str] = ("in", "ln", "bn"),
    replicas: int = 1,
) -> None:
    channels = x.shape[1]
    layer = SwitchNorm2d(channels, eps, omega=omega, num_groups=4, dtype=torch.float64)
    randomize(layer)
    exact = [layer.weight, layer.bias, layer.mean_weight, layer.var_weight]
    x64 = x.detach().double().requires_grad_()
    groups = layer.num_groups
    expected = fig7(x64, *exact, eps=eps, omega=omega, num_groups=groups, replicas=replicas)
    direction = torch.randn(x.shape, dtype=torch.float64).to(x)
    expected_grads = torch.autograd.grad(expected, [x64, *exact], direction.double())
    if x.dtype != torch.float64:
        layer = layer.float()
    layer.backend = "triton"
    set_replicas(layer, replicas)
    x = x.requires_grad_()
    y = layer(x)
    assert y.dtype == x.dtype
    parameters = [layer.weight, layer.bias, layer.mean_weight, layer.var_weight]
    grads = torch.autograd.grad(y, [x, *parameters], direction)
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    for grad, reference in zip(grads, expected_grads, strict=True):
        scale = tolerance * max(1.0, float(reference.abs().max()), x.numel() ** 0.5)
        torch.testing.assert_close(grad.double(), reference, rtol=tolerance, atol=scale)


@pytest.fixture(autouse=True)
def _device() -> None:
    torch.manual_seed(0)
    torch.set_default_device(DEVICE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes(shape: tuple[int, ...], layout: str) -> None:
    check(LAYOUTS[layout](torch.randn(shape)), TOLERANCE[torch.float32])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_dtypes(dtype: torch.dtype, layout: str) -> None:
    check(LAYOUTS[layout](torch.randn(2, 10, 6, 7).to(dtype)), TOLERANCE[dtype])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_large_mean(layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(1, 4, 40, 40) + 1000)
    mean, var = BACKENDS["triton"].moments(x)
    expected = torch.var_mean(x.double(), (2, 3), correction=0)
    torch.testing.assert_close(var.double(), expected[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(mean.double(), expected[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("samples", [1, 2, 32])
def test_every_layer_of_resnet_50_fills_the_chip(samples: int, layout: str) -> None:
    for channels, side in [(64, 112), (64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)]:
        x = torch.empty(samples, channels, side, side, device="meta")
        launch = _Launch(LAYOUTS[layout](x))
        programs = launch.programs * launch.splits
        tiles = launch.programs * -(-launch.area // launch.bp)
        # Half of MOST_SPLITS and more: whole tiles do not divide evenly.
        assert programs >= min(264, tiles, launch.programs * MOST_SPLITS // 2)
        assert (launch.splits - 1) * launch.per_split < launch.area


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks of channels, two runs of samples per column, at sizes fit for an interpreter."""
    monkeypatch.setattr(triton_mixture, "_ROW_BLOCK", 16)
    monkeypatch.setattr(triton_mixture, "_COLUMN_ROWS", 4)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("omega", "replicas"),
    [
        (("in",), 1),
        (("ln",), 2),
        (("bn",), 2),
        (("gn",), 1),
        (("in", "ln", "bn"), 1),
        (("in", "ln", "bn", "gn"), 2),
    ],
    ids=str,
)
def test_pooling(omega: tuple[str, ...], replicas: int) -> None:
    x = (torch.randn(10, 20, 1, 2) + torch.randn(10, 20, 1, 1)).double()
    check(x, TOLERANCE[torch.float64], omega=omega, replicas=replicas)


@pytest.mark.usefixtures("small_blocks")
def test_pooling_of_large_means() -> None:
    check(torch.randn(6, 20, 2, 2).double() + 1e6, 1e-8)
    check(torch.randn(6, 20, 2, 2) + 1000, 1e-3)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "layer_class",
    [BatchNorm2d, InstanceNorm2d, LayerNorm2d, GroupNorm2d, SwitchNorm2d, BatchRenorm2d],
)
def test_layers_equal_their_native_selves(layer_class: type[PooledNorm2d], affine: bool) -> None:
    native, ours = (layer_class(6, affine=affine).double() for _ in range(2))
    native.backend, ours.backend = "native", "triton"
    for layer in (native, ours):
        randomize(layer)
    x = torch.randn(4, 6, 3, 5, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)
    for training in (True, False):
        y, expected = ours.train(training)(x), native.train(training)(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(
            torch.autograd.grad(y, [x, *ours.parameters()], direction),
            torch.autograd.grad(expected, [x, *native.parameters()], direction),
        )
    torch.testing.assert_close(dict(ours.named_buffers()), dict(native.named_buffers()))
