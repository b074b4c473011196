"""The Triton kernels against the float64 formula. test_norms_triton.py runs these in a process of
their own, with TRITON_INTERPRET=1 set before Triton is imported, or compiled on a CUDA device.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from norm_reference import LAYOUTS, check_switch_norm, randomize
from test_norms_ranks import check_two_ranks
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from sn_imagenet.data.triton_pixels import normalize
from sn_imagenet.norms import (
    BatchNorm2d,
    BatchRenorm2d,
    GroupNorm2d,
    InstanceNorm2d,
    LayerNorm2d,
    MomentNorm2d,
    SwitchNorm2d,
    set_replicas,
)
from sn_imagenet.norms.closed_form import triton_tables
from sn_imagenet.norms.kernels import BACKENDS, triton_backend, triton_launch
from sn_imagenet.norms.kernels.triton_tiles import MAX_PARTS, TILES, Tile, launch
from sn_imagenet.norms.methods import METHODS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SHAPES = [
    (2, 3, 1, 1),
    (1, 3, 7, 7),
    (2, 65, 7, 7),
    (2, 48, 5, 3),
    (1, 5, 1, 17),
    (1, 2, 67, 61),  # several splits, the last one short, in both layouts
    (1, 130, 12, 9),
]


check = partial(check_switch_norm, backend="triton")


@pytest.fixture(autouse=True)
def _device() -> None:
    torch.manual_seed(0)
    torch.set_default_device(DEVICE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes_equal_the_formula(shape: tuple[int, ...], layout: str) -> None:
    check(LAYOUTS[layout](torch.randn(shape)), TOLERANCE[torch.float32])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fused", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_dtypes_equal_the_formula(
    dtype: torch.dtype, fused: tuple[bool, bool], layout: str
) -> None:
    x = LAYOUTS[layout](torch.randn(2, 10, 6, 7).to(dtype))
    check(x, TOLERANCE[dtype], relu=fused[0], with_residual=fused[1])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 3, 7, 7), (2, 65, 7, 5), (1, 2, 67, 61)])
def test_relu_equals_the_formula(shape: tuple[int, ...], with_residual: bool, layout: str) -> None:
    check(LAYOUTS[layout](torch.randn(shape)), 1e-4, relu=True, with_residual=with_residual)


def test_special_values_equal_torchs() -> None:
    """No gradient at 0; NaN and its gradient pass."""
    values = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1, -1, 1e-30])
    x = values[:, None, None].expand(8, 3, 3).repeat(2, 1, 1, 1).requires_grad_()
    zeros, ones = torch.zeros(2, 8), torch.ones(2, 8)
    identity, grad = torch.stack([zeros, ones, zeros]), torch.ones_like(x)
    kernels = BACKENDS["triton"]
    expected = torch.relu(x)
    (expected_grad,) = torch.autograd.grad(expected, x, grad)
    for residual in (None, torch.zeros_like(x)):
        y = kernels.affine(x.detach(), identity, True, residual)
        torch.testing.assert_close(y, expected.detach(), rtol=0, atol=0, equal_nan=True)
        mask = (True, None) if residual is None else (False, y)
        sums, masked = kernels.gradient_sums(grad, x.detach(), zeros, identity, *mask)
        torch.testing.assert_close(sums[0], expected_grad.sum((2, 3)), rtol=0, atol=0)
        assert residual is None or masked.equal(expected_grad)


@pytest.mark.parametrize("tile", TILES[1:], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_tiles_equal_the_formula(layout: str, tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend.TUNER, "tile", lambda *_: tile)
    check(LAYOUTS[layout](torch.randn(1, 5, 67, 61)), 1e-4, relu=True)
    check(LAYOUTS[layout](torch.randn(2, 130, 5, 3)), 1e-4, relu=True, with_residual=True)


class OperatorLog(TorchDispatchMode):
    """Records the operators that launch a kernel of PyTorch, without allocations and views."""

    IGNORE = ("empty", "view", "unbind", "slice", "select", "detach", "squeeze", "narrow", "expand")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(word in func.__name__ for word in self.IGNORE):
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of our kernels in the order of their launches."""
    names: list[str] = []
    call = triton_launch.call

    def call_and_record(kernel: Any, *arguments: Any) -> None:
        names.append(kernel.fn.__name__)
        with _disable_current_modes():  # ignores the interpreter's operators
            call(kernel, *arguments)

    monkeypatch.setattr(triton_launch, "call", call_and_record)
    return names


@pytest.mark.parametrize("fused", [False, True])
def test_a_layer_takes_eight_launches(fused: bool, launches: list[str]) -> None:
    """4 forward, 4 backward, with or without ReLU and residual; nothing else for the running
    statistics and their count."""
    layer = SwitchNorm2d(4)
    layer.backend, layer.relu = "triton", fused
    x, residual = torch.randn(2, 4, 7, 7), torch.randn(2, 4, 7, 7)
    leaves = [t.requires_grad_() for t in ([x, residual] if fused else [x])]
    grad, inputs = torch.ones_like(x), [*leaves, *layer.parameters()]
    torch.autograd.grad(layer(*leaves), inputs, grad)  # on a GPU this times the tiles
    launches.clear()
    with OperatorLog() as operators:
        y = layer(*leaves)
        assert len(launches) == 4
        torch.autograd.grad(y, inputs, grad)
    assert len(launches) == 8 and len(set(launches)) == 8
    assert operators.names == []


@pytest.mark.parametrize(("method", "least"), [("bn", 25), ("sn", 70)])
def test_autograd_takes_more_launches(method: str, least: int, launches: list[str]) -> None:
    """4 over the pixels, and 33 (BN) or 81 (SN) operators of PyTorch 2.15 instead of the 4 that
    combine statistics. Other versions of PyTorch may take a few more or fewer.
    """
    layer = METHODS[method](4)
    layer.backend = "triton"
    set_replicas(layer, 2, holds_first_replica=False)
    layer._normalize = MethodType(MomentNorm2d._normalize, layer)  # as a custom method runs
    x = torch.randn(4, 4, 7, 7, requires_grad=True)
    inputs, grad = [x, *layer.parameters()], torch.ones_like(x)
    torch.autograd.grad(layer(x), inputs, grad)
    launches.clear()
    with OperatorLog() as operators:
        torch.autograd.grad(layer(x), inputs, grad)
    assert len(launches) == 4
    assert len(operators.names) >= least


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_moments_of_a_large_mean_keep_precision(layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(1, 4, 40, 40) + 1000)
    mean, var = BACKENDS["triton"].moments(x)
    expected = torch.var_mean(x.double(), (2, 3), correction=0)
    torch.testing.assert_close(var.double(), expected[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(mean.double(), expected[1], rtol=0, atol=1e-4)


def test_every_call_gives_the_same_bits() -> None:
    x, grad = torch.randn(2, 2, 3, 40, 70).unbind()
    mean, tables = torch.randn(2, 3), torch.randn(3, 2, 3)
    kernels = BACKENDS["triton"]
    first, again = (
        (*kernels.moments(x), kernels.gradient_sums(grad, x, mean, tables, False, None)[0])
        for _ in range(2)
    )
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shifted", [False, True])
def test_images_are_normalized_as_by_operators(shifted: bool, dtype: torch.dtype) -> None:
    images = torch.randint(256, (3, 5, 300, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    shifts = torch.randn(3, 3) * 0.1 if shifted else None
    mean, std = torch.rand(3), torch.rand(3) + 0.1
    ours = normalize(images, shifts, mean, std, dtype)
    expected = images.to(torch.float32).mul_(1 / 255)
    if shifts is not None:
        expected.add_(shifts[:, :, None, None])
    expected.sub_(mean[:, None, None]).div_(std[:, None, None])
    # Triton's interpreter truncates to bfloat16.
    unit = 2**-7 if dtype == torch.bfloat16 and DEVICE == "cpu" else 0
    torch.testing.assert_close(ours, expected.to(dtype), rtol=unit, atol=0)
    assert ours.stride() == images.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_parameters_of_other_dtypes_are_served(dtype: torch.dtype, launches: list[str]) -> None:
    single = SwitchNorm2d(4)
    randomize(single)
    with torch.no_grad():
        for tensor in [*single.parameters(), single.running_mean, single.running_var]:
            tensor.copy_(tensor.to(dtype))
    other = deepcopy(single).to(dtype)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    results = []
    for layer in (single, other):
        layer.backend = "triton"
        y = layer(x)
        y.square().sum().backward()
        results.append([y, x.grad, *layer.buffers(), *(p.grad for p in layer.parameters())])
        x.grad = None
    assert len(launches) == 16
    for wide, narrow in zip(*results, strict=True):
        torch.testing.assert_close(narrow, wide.to(narrow.dtype))
    assert other.running_mean.dtype == other.weight.grad.dtype == dtype


def test_statistics_that_changed_before_backward_are_an_error() -> None:
    layer = BatchNorm2d(4)
    layer.backend = "triton"
    y = layer.eval()(torch.randn(2, 4, 5, 5, requires_grad=True))
    layer.train()(torch.randn(2, 4, 5, 5))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("samples", [1, 2, 32])
def test_every_layer_of_resnet_50_fills_the_gpu(samples: int, layout: str) -> None:
    for channels, side in [(64, 112), (64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)]:
        x = torch.empty(samples, channels, side, side, device="meta")
        tiles = launch(LAYOUTS[layout](x))
        most = tiles.programs * -(-tiles.area // tiles.bp)
        # At least half of what is wanted, because whole tiles do not divide evenly.
        assert tiles.reduction_programs >= min(264, most // 2, tiles.programs * MAX_PARTS // 2)
        assert tiles.elementwise_programs >= min(528, most // 2)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks of channels and two chunks of samples per column, small for the interpreter."""
    monkeypatch.setattr(triton_tables, "_ROW_BLOCK", 16)
    monkeypatch.setattr(triton_tables, "_COLUMN_ROWS", 4)


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
def test_combining_equals_the_formula(omega: tuple[str, ...], replicas: int) -> None:
    x = (torch.randn(10, 20, 1, 2) + torch.randn(10, 20, 1, 1)).double()
    check(x, TOLERANCE[torch.float64], omega=omega, replicas=replicas)


@pytest.mark.usefixtures("small_blocks")
def test_combining_large_means_keeps_precision() -> None:
    check(torch.randn(6, 20, 2, 2).double() + 1e6, 1e-8)
    check(torch.randn(6, 20, 2, 2) + 1000, 1e-3)


@pytest.mark.skipif(DEVICE != "cpu", reason="two processes on one GPU: gloo has no CUDA kernels")
def test_a_replica_on_two_ranks_equals_one_process(tmp_path: Path) -> None:
    check_two_ranks(2, "triton", tmp_path)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "layer_class",
    [BatchNorm2d, InstanceNorm2d, LayerNorm2d, GroupNorm2d, SwitchNorm2d, BatchRenorm2d],
)
def test_layers_equal_the_native_backend(layer_class: type[MomentNorm2d], affine: bool) -> None:
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
