"""The Triton kernels against the float64 formula; run by test_norms_triton.py in a process of its
own, where TRITON_INTERPRET=1 was set before Triton was imported, or as they are on a CUDA device.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from norm_reference import fig7, randomize
from torch import Tensor

from sn_imagenet.norms import SwitchNorm2d
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
    (4, 65, 7, 7),
    (2, 48, 5, 3),
    (1, 5, 1, 17),
    (1, 2, 67, 61),  # several splits, the last one short, in both layouts
    (2, 130, 12, 9),
]


def check(x: Tensor, tolerance: float, eps: float) -> None:
    channels = x.shape[1]
    layer = SwitchNorm2d(channels, eps, dtype=torch.float64)
    randomize(layer)
    exact = [layer.weight, layer.bias, layer.mean_weight, layer.var_weight]
    x64 = x.detach().double().requires_grad_()
    expected = fig7(x64, *exact, eps=eps)
    direction = torch.randn(x.shape, dtype=torch.float64).to(x)
    expected_grads = torch.autograd.grad(expected, [x64, *exact], direction.double())
    if x.dtype != torch.float64:
        layer = layer.float()
    layer.backend = "triton"
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
    check(LAYOUTS[layout](torch.randn(shape)), TOLERANCE[torch.float32], eps=1e-2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_dtypes(dtype: torch.dtype, layout: str) -> None:
    check(LAYOUTS[layout](torch.randn(2, 20, 6, 7).to(dtype)), TOLERANCE[dtype], eps=1e-2)


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
