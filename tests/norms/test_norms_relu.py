"""The fused residual and ReLU of a layer, against PyTorch's operators."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from norm_reference import BACKENDS, LAYOUTS, gradients, randomize
from test_norms_own import HalfBatchNorm2d
from torch import Tensor, nn

from sn_imagenet.norms import (
    BatchNorm2d,
    BatchRenorm2d,
    FrozenBatchNorm2d,
    GroupNorm2d,
    InstanceNorm2d,
    LayerNorm2d,
    MomentNorm2d,
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
    SyncBatchNorm2d,
    collect_batch_averages,
    convert_norm,
    normalize,
    set_replicas,
)
from sn_imagenet.norms.kernels import BACKENDS as KERNELS

METHODS = (
    BatchNorm2d,
    InstanceNorm2d,
    LayerNorm2d,
    GroupNorm2d,
    SwitchNorm2d,
    BatchRenorm2d,
    FrozenBatchNorm2d,
    SyncBatchNorm2d,
    HalfBatchNorm2d,
)


def clear_of_zero(z: Tensor, residual: Tensor) -> Tensor:
    """``residual``, shifted where z + residual is so near 0 that rounding may decide its sign."""
    return torch.where((z + residual).abs() < 0.1, residual + 0.3, residual)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", [SwitchNorm2d, HalfBatchNorm2d])
def test_residual_and_relu_pass_gradcheck(method: type[MomentNorm2d], backend: str) -> None:
    torch.manual_seed(1)
    layer = method(3, eps=1e-2, momentum=0.0).double()
    layer.relu, layer.backend = True, backend
    x = torch.randn(2, 3, 3, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.relu = False
        residual = clear_of_zero(layer(x), torch.randn_like(x))
        layer.relu = True
    inputs = (x.requires_grad_(), residual.requires_grad_())
    assert torch.autograd.gradcheck(layer, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("area", [(1, 1), (3, 3), (17, 16)])
def test_special_values_equal_torchs(area: tuple[int, int], layout: str, backend: str) -> None:
    """No gradient at 0; NaN and its gradient pass; infinities are unchanged."""
    values = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1.0, -1.0, 1e-30]
    x = torch.tensor(values)[:, None, None].expand(8, *area).repeat(2, 1, 1, 1)
    x = LAYOUTS[layout](x).requires_grad_()
    kernels = KERNELS[backend]
    zeros, ones = torch.zeros(2, 8), torch.ones(2, 8)
    identity, line = torch.stack([zeros, ones, zeros]), torch.stack([zeros, zeros])
    grad = torch.full_like(x, 3.0)
    for residual in (None, torch.zeros_like(x)):
        y = kernels.affine(x.detach(), identity, True, residual)
        expected = torch.relu(x)
        torch.testing.assert_close(y, expected.detach(), rtol=0, atol=0, equal_nan=True)
        (expected_grad,) = torch.autograd.grad(expected, x, grad)
        recompute = residual is None
        mask = (True, None) if recompute else (False, y)
        sums, masked = kernels.gradient_sums(grad, x.detach(), zeros, identity, *mask)
        torch.testing.assert_close(sums[0], expected_grad.sum((2, 3)), rtol=0, atol=0)
        dx = kernels.input_gradient(masked, x.detach(), zeros, identity, line, recompute)
        finite = x.detach().isfinite()  # 0 * infinity elsewhere, with or without ReLU
        assert dx[finite].equal(expected_grad[finite])
        if residual is not None:
            assert masked.equal(expected_grad)


def _unfused(layer: MomentNorm2d, x: Tensor, residual: Tensor) -> Tensor:
    return F.relu(layer(x) + residual)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_mode_equals_unfused(method: type[MomentNorm2d], training: bool) -> None:
    """Outputs, gradients and running statistics; also without gradients."""
    torch.manual_seed(2)
    plain = method(6).double().train(training)
    randomize(plain)
    for buffer in (plain.running_mean, plain.running_var):
        if buffer is not None:
            buffer.uniform_(0.5, 1.5)
    fused = copy.deepcopy(plain)
    fused.relu = True
    set_replicas(plain, 2)
    set_replicas(fused, 2)
    x = torch.randn(4, 6, 5, 3, dtype=torch.float64, requires_grad=True)
    residual = torch.randn_like(x).requires_grad_()
    expected, actual = _unfused(plain, x, residual), fused(x, residual)
    torch.testing.assert_close(actual, expected)
    plain_inputs = [x, residual, *(p for p in plain.parameters() if p.requires_grad)]
    fused_inputs = [x, residual, *(p for p in fused.parameters() if p.requires_grad)]
    torch.testing.assert_close(gradients(actual, fused_inputs), gradients(expected, plain_inputs))
    torch.testing.assert_close(dict(fused.named_buffers()), dict(plain.named_buffers()))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(fused(x, residual), _unfused(plain, x, residual))
    with collect_batch_averages(plain) as ours, collect_batch_averages(fused) as theirs:
        _unfused(plain.train(), x, residual), fused.train()(x, residual)
    for name, average in ours.items():
        torch.testing.assert_close(average.tables, theirs[name].tables)


@pytest.mark.parametrize("layer", [SwitchNorm1d(4), SwitchNorm3d(4)], ids=["1d", "3d"])
def test_1d_and_3d_layers_equal_unfused(layer: SwitchNorm2d) -> None:
    shape = (3, 4, 5) if isinstance(layer, SwitchNorm1d) else (3, 4, 2, 3, 2)
    x, residual = torch.randn(shape), torch.randn(shape)
    expected = F.relu(layer(x) + residual)
    layer.relu = True
    torch.testing.assert_close(layer(x, residual), expected)


@pytest.mark.parametrize("backend", [*BACKENDS, "formula"])
def test_autocast_output_is_bf16(backend: str) -> None:
    """Also with an fp32 shortcut. Statistics and gradients stay in fp32."""
    layer = SwitchNorm2d(8)
    layer.relu = True
    if backend != "formula":
        layer.backend = backend
    x, residual = torch.randn(4, 8, 5, 5), torch.randn(4, 8, 5, 5, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(F.conv2d(x, torch.randn(8, 8, 1, 1)), residual)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert residual.grad is not None and residual.grad.dtype == torch.float32
    assert residual.grad.equal((y > 0).float())
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
    assert layer.running_var is not None and layer.running_var.dtype == torch.float32


def test_an_output_changed_in_place_is_an_error() -> None:
    layer = SwitchNorm2d(4)
    layer.relu = True
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    y = layer(x, torch.randn_like(x))
    y += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_residual_of_another_shape_is_an_error() -> None:
    layer = SwitchNorm2d(4)
    with pytest.raises(ValueError, match=r"residual of shape \[2, 4, 1, 1\]: expected .*\[2, 4, 3"):
        layer(torch.randn(2, 4, 3, 3), torch.randn(2, 4, 1, 1))


def test_residual_and_relu_compile_into_one_graph() -> None:
    layer = SwitchNorm2d(4)
    layer.relu = True
    x, residual = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, residual), layer(x, residual))


def test_normalize_takes_a_residual_and_relu() -> None:
    x, residual = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)

    def instance(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return mean, torch.rsqrt(var + 1e-5), torch.zeros_like(mean)

    expected = F.relu(F.instance_norm(x) + residual)
    for backend in (*BACKENDS, "formula"):
        y = normalize(x, instance, [], backend, relu=True, residual=residual)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn1, self.bn2 = BatchNorm2d(4), BatchNorm2d(4)
        self.bn1.relu = self.bn2.relu = True

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv2(self.bn1(self.conv1(x))), x)
        return y


def test_converting_keeps_fused_relus() -> None:
    block = Block()
    x = torch.randn(4, 4, 5, 5)
    for _ in range(3):
        block(x)
    expected = block.eval()(x)
    converted = copy.deepcopy(block)
    convert_norm(converted, "frozen_bn")
    torch.testing.assert_close(converted(x), expected)
