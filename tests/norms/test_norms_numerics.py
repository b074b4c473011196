"""Shapes, dtypes, memory formats, precision, and the memory kept for backward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_reference import BACKENDS, OMEGAS, fig7, gradients, randomize
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from sn_imagenet.norms import (
    BatchNorm2d,
    GroupNorm2d,
    InstanceNorm2d,
    LayerNorm2d,
    MomentNorm2d,
    SwitchNorm2d,
    set_replicas,
)
from sn_imagenet.norms.kernels.cpp import DTYPES

# For fp32, fp16 and bf16 the layer computes in fp32. The error is a few fp32 roundings (2^-24)
# times 1 / std of a channel with small variance (up to 100 here), plus one rounding to the input's
# dtype: 2^-11 for fp16, 2^-8 for bf16. A gradient adds a rounding of dy.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 2e-4,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}
SIZES = st.sampled_from([1, 2, 3, 5, 7, 8])


def every_other_column(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=3)[..., ::2]


def transposed(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous().transpose(2, 3)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": every_other_column,
    "transposed": transposed,
    "expanded": lambda x: x[:, :, :1, :1].expand_as(x),
}


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    batch=SIZES,
    channels=st.sampled_from([1, 2, 3, 5, 16, 31]),
    height=SIZES,
    width=SIZES,
    omega=st.sampled_from(OMEGAS),
    dtype=st.sampled_from(list(TOLERANCE)),
    layout=st.sampled_from(list(LAYOUTS)),
    grad_layout=st.sampled_from(["contiguous", "channels_last", "strided", "expanded"]),
    backend=st.sampled_from(BACKENDS),
    replicas=st.sampled_from([1, 1, 2]),
)
def test_any_input_gives_the_formulas_output_and_gradients(
    batch: int,
    channels: int,
    height: int,
    width: int,
    omega: tuple[str, ...],
    dtype: torch.dtype,
    layout: str,
    grad_layout: str,
    backend: str,
    replicas: int,
) -> None:
    batch *= replicas
    generator = torch.Generator().manual_seed(batch * 1000 + channels)
    shape = (batch, channels, height, width)
    x = LAYOUTS[layout](torch.randn(shape, generator=generator).to(dtype)).requires_grad_()
    # eps bounds 1 / std where all pixels of a set are equal.
    layer = SwitchNorm2d(channels, eps=1e-2, omega=omega, num_groups=4)
    randomize(layer)
    set_replicas(layer, replicas)
    if dtype in DTYPES:
        layer.backend = backend
    exact = SwitchNorm2d(channels, eps=1e-2, omega=omega, num_groups=4).double()
    if dtype == torch.float64:
        layer = layer.double()
    exact.load_state_dict(layer.state_dict())
    names = ("weight", "bias", "mean_weight", "var_weight")
    parameters = [exact.get_parameter(name) for name in names]
    x64 = x.detach().double().requires_grad_()
    expected = fig7(
        x64,
        *parameters,
        omega=omega,
        eps=1e-2,
        num_groups=layer.num_groups,
        replicas=replicas,
    )
    direction = torch.randn(shape, generator=generator).to(dtype)
    direction = LAYOUTS[grad_layout](direction)

    y = layer(x)
    assert y.dtype == dtype and y.shape == x.shape
    if x.numel() > 1 and min(x.stride()) > 0:
        if x.is_contiguous():
            assert y.is_contiguous()
        elif x.is_contiguous(memory_format=torch.channels_last):
            assert y.is_contiguous(memory_format=torch.channels_last)
    grads = torch.autograd.grad(y, [x, *map(layer.get_parameter, names)], direction)
    expected_grads = torch.autograd.grad(expected, [x64, *parameters], direction.double())
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    # A parameter's gradient is a sum over many elements, so its error scales with their norm.
    for grad, reference in zip(grads, expected_grads, strict=True):
        scale = tolerance * max(1.0, float(reference.abs().max()), direction.numel() ** 0.5)
        torch.testing.assert_close(grad.double(), reference, rtol=tolerance, atol=scale)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "layer_class", [BatchNorm2d, InstanceNorm2d, LayerNorm2d, GroupNorm2d, SwitchNorm2d]
)
def test_one_sample_of_one_pixel_is_finite(
    layer_class: type[MomentNorm2d], layout: str, backend: str
) -> None:
    """A 1x1 map and a batch of one: the variance of a single value is 0, so IN's and BN's output is
    the bias (the authors' division by HW - 1 makes this NaN)."""
    layer = layer_class(5)
    layer.backend = backend
    x = LAYOUTS[layout](torch.randn(1, 5, 1, 1)).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
    assert all(buffer.isfinite().all() for buffer in layer.buffers())
    if layer_class in (BatchNorm2d, InstanceNorm2d):
        # The error is 1 / sqrt(eps) = 316 times the rounding of x.
        torch.testing.assert_close(y, torch.zeros_like(y), rtol=0, atol=2e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_constant_input_is_finite(layout: str, backend: str) -> None:
    layer = SwitchNorm2d(4)
    layer.backend = backend
    x = LAYOUTS[layout](torch.full((3, 4, 5, 5), 7.0)).requires_grad_()
    y = layer(x)
    assert gradients(y, [x, *layer.parameters()])[0].isfinite().all()
    torch.testing.assert_close(y, torch.zeros_like(y), rtol=0, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("omega", OMEGAS, ids="+".join)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_large_mean_keeps_precision(layout: str, omega: tuple[str, ...], backend: str) -> None:
    """Mean 1000, standard deviation 1 in fp32. E[x^2] - E[x]^2 would lose the variance, because an
    ulp of 10^6 is 0.06. The remaining error is one rounding of 1000 (6e-5) in mean or shift."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 32, 9, 9, generator=generator) + 1000
    x = LAYOUTS[layout](x).requires_grad_()
    layer = SwitchNorm2d(32, omega=omega, num_groups=8)
    layer.backend = backend
    x64 = x.detach().double().requires_grad_()
    logits = torch.ones(len(omega), dtype=torch.float64)
    ones, zeros = torch.ones(32).double(), torch.zeros(32).double()
    expected = fig7(x64, ones, zeros, logits, logits, omega=omega, num_groups=8)
    actual = layer(x)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=3e-4)
    torch.testing.assert_close(
        gradients(actual, [x])[0].double(), gradients(expected, [x64])[0], rtol=1e-3, atol=1e-3
    )


class StorageLog(TorchDispatchMode):
    """Records every storage that an operator returns, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            self.storages[reference.cdata] = (reference, storage.nbytes())
        return result

    def alive_bytes(self, *excluded: Tensor) -> int:
        """Bytes of the storages that are still referenced, except those of ``excluded``."""
        skip = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in excluded}
        kept = [
            size
            for cdata, (ref, size) in self.storages.items()
            if cdata not in skip and not ref.expired()
        ]
        return sum(kept)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "layer_class", [BatchNorm2d, InstanceNorm2d, LayerNorm2d, GroupNorm2d, SwitchNorm2d]
)
def test_backward_keeps_only_the_input_and_tables(
    layer_class: type[MomentNorm2d], layout: str, dtype: torch.dtype, backend: str
) -> None:
    """The only saved tensor of x's size is x, which the layer before has computed anyway."""
    n, channels = 4, 32
    layer = layer_class(channels)
    layer.backend = backend
    x = LAYOUTS[layout](torch.randn(n, channels, 32, 32).to(dtype)).requires_grad_()
    saved: list[Tensor] = []
    with (
        StorageLog() as log,
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        y = layer(x)
    full_size = [t for t in saved if t.numel() >= x.numel()]
    assert {t.data_ptr() for t in full_size} == {x.data_ptr()}
    kept = log.alive_bytes(x, y)
    assert kept <= 32 * n * channels * 4, f"{kept / (n * channels * 4)} tables"


def test_backward_can_run_twice_with_retain_graph() -> None:
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = SwitchNorm2d(3)(x).square().sum()
    first = torch.autograd.grad(y, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(y, x), first, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x)


def test_autocast_keeps_statistics_and_gradients_in_fp32() -> None:
    """A bf16 activation and fp32 parameters give bf16 output."""
    layer, x = SwitchNorm2d(8), torch.randn(4, 8, 5, 5)
    weight = torch.randn(8, 8, 1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        activation = torch.nn.functional.conv2d(x, weight)
        y = layer(activation)
    assert activation.dtype == y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
    assert layer.running_var is not None and layer.running_var.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_reach_the_output(
    bad: float, layout: str, dtype: torch.dtype, backend: str
) -> None:
    """They must reach the loss, which stops the run."""
    x = torch.randn(4, 5, 9, 9).to(dtype)
    x[1, 2, 3, 4] = bad
    layer = BatchNorm2d(5)
    layer.backend = backend
    y = layer(LAYOUTS[layout](x))
    assert y[:, 2].isnan().any()
    assert y[:, [0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [7, 56])
def test_large_means_are_off_by_a_tenth_of_a_deviation(
    layout: torch.memory_format, size: int
) -> None:
    """fp32 has steps of 0.001 at 1e4, so an exact mean is off by 0.05 deviations of 0.01."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 8, size, size, generator=generator, dtype=torch.float64)
    x = (1e4 + 1e-2 * noise).float().to(memory_format=layout)
    with torch.no_grad():
        for method, bound in ((InstanceNorm2d, 0.08), (SwitchNorm2d, 0.13)):
            layer = method(8, eps=1e-12)
            expected = copy.deepcopy(layer).double()(x.double())
            assert (layer(x).double() - expected).abs().max() < bound
