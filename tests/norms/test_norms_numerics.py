"""Shapes, dtypes, memory formats, precision, and the memory kept for backward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_reference import BACKENDS, LAYOUTS, OMEGAS, check_switch_norm, fig7, gradients
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
)
from sn_imagenet.norms.kernels.cpp import DTYPES

# For fp32, fp16 and bf16 the layer computes in fp32. The error is a few fp32 roundings (2^-24)
# times 1 / std of a channel with small variance (up to 100 here), plus one rounding to the input's
# dtype: 2^-11 for fp16, 2^-8 for bf16. A gradient adds a rounding of dy.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SIZES = st.sampled_from([1, 2, 3, 5, 7, 8])


X_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    **LAYOUTS,
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda x: x[:, :, :1, :1].expand_as(x),
}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    batch=SIZES,
    channels=st.sampled_from([1, 2, 3, 5, 16, 31]),
    height=SIZES,
    width=SIZES,
    omega=st.sampled_from(OMEGAS),
    dtype=st.sampled_from(list(TOLERANCE)),
    layout=st.sampled_from(list(X_LAYOUTS)),
    other_layout=st.sampled_from([*LAYOUTS, "expanded"]),
    backend=st.sampled_from([*BACKENDS, "formula"]),
    replicas=st.sampled_from([1, 1, 2]),
    relu=st.booleans(),
    with_residual=st.booleans(),
    by_autograd=st.sampled_from([False, False, True]),
)
def test_any_input_gives_the_formulas_output_and_gradients(
    batch: int,
    channels: int,
    height: int,
    width: int,
    omega: tuple[str, ...],
    dtype: torch.dtype,
    layout: str,
    other_layout: str,
    backend: str,
    replicas: int,
    relu: bool,
    with_residual: bool,
    by_autograd: bool,
) -> None:
    torch.manual_seed(batch * 1000 + channels)
    x = X_LAYOUTS[layout](torch.randn(batch * replicas, channels, height, width).to(dtype))
    if relu and other_layout == "expanded":
        other_layout = "channels_last"  # one gradient would be near and far from 0
    check_switch_norm(
        x,
        TOLERANCE[dtype],
        None if backend == "cpp" and dtype not in DTYPES else backend,
        omega=omega,
        replicas=replicas,
        relu=relu,
        with_residual=with_residual,
        by_autograd=by_autograd,
        layout=X_LAYOUTS[other_layout],
    )


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
@pytest.mark.parametrize("with_residual", [False, True])
def test_backward_keeps_only_the_input_and_tables(
    layer_class: type[MomentNorm2d],
    layout: str,
    dtype: torch.dtype,
    backend: str,
    with_residual: bool,
) -> None:
    """The only saved tensors of x's size are x, which the layer before has computed anyway, and
    after a residual and a ReLU also y, which the next layer keeps. No mask is kept."""
    n, channels = 4, 32
    layer = layer_class(channels)
    layer.backend, layer.relu = backend, True
    x, residual = (
        LAYOUTS[layout](torch.randn(n, channels, 32, 32).to(dtype)).requires_grad_()
        for _ in range(2)
    )
    saved: list[Tensor] = []
    with (
        StorageLog() as log,
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        y = layer(x, residual if with_residual else None)
    full_size = [t for t in saved if t.numel() >= x.numel()]
    kept_pixels = [x, y] if with_residual else [x]
    assert {t.data_ptr() for t in full_size} == {t.data_ptr() for t in kept_pixels}
    kept = log.alive_bytes(x, y, residual)
    assert kept <= 32 * n * channels * 4, f"{kept / (n * channels * 4)} tables"


def test_backward_can_run_twice_with_retain_graph() -> None:
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = SwitchNorm2d(3)(x).square().sum()
    first = torch.autograd.grad(y, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(y, x), first, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x)


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
