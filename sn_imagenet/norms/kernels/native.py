"""The kernels as PyTorch's own operators."""

from __future__ import annotations

import torch
from torch import Tensor

from sn_imagenet.norms.kernels.tables import statistics_dtype


def _over_map(table: Tensor) -> Tensor:
    return table[:, :, None, None]


class NativeBackend:
    """ATen operators; any device, dtype and memory format.

    Viewed as [1, N*C, H, W], a contiguous activation has one batch-norm "channel" per (sample,
    channel). So group norm's and batch norm's own kernels serve as two of the four kernels.
    """

    name = "native"

    # So small that fp32 rounds it off any variance, and so large that 1 / sqrt(eps) is finite. Then
    # 1 / rstd^2 is the variance itself, with no eps to subtract.
    _eps = 1e-30

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n, channels, height, width = x.shape
        if x.is_contiguous() and statistics_dtype(x.dtype) == x.dtype:
            _, mean, rstd = torch.native_group_norm(
                x, None, None, n, channels, height * width, channels, self._eps
            )
            return mean, rstd.pow(-2)
        x = x.to(statistics_dtype(x.dtype))
        mean = x.mean(dim=(2, 3))
        return mean, (x - _over_map(mean)).square_().mean(dim=(2, 3))

    def affine(
        self, x: Tensor, tables: Tensor, relu: bool = False, residual: Tensor | None = None
    ) -> Tensor:
        center, scale, shift = tables
        if x.is_contiguous() and x.dtype == scale.dtype:
            folded = x.view(1, -1, *x.shape[2:])
            center, scale, shift = tables.flatten(1)
            y = torch.native_batch_norm(
                folded, scale, shift, center, torch.ones_like(center), False, 0.0, 0.0
            )[0]
            # Not a view for autograd, so that an in-place ReLU may follow.
            y = torch.ops.aten._unsafe_view(y, x.shape)
        else:
            y = (x - _over_map(center)).mul_(_over_map(scale)).add_(_over_map(shift))
        if residual is not None:
            y.add_(residual)
        if relu:
            y.relu_()
        return y.to(x.dtype)

    def gradient_sums(
        self, grad: Tensor, x: Tensor, mean: Tensor, tables: Tensor, relu: bool, y: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        masked = grad if y is None else torch.ops.aten.threshold_backward(grad, y, 0)
        values = (self._mask(grad, x, tables) if relu else masked).to(mean.dtype)
        centered = x - _over_map(mean)
        sums = torch.stack([values.sum(dim=(2, 3)), centered.mul_(values).sum(dim=(2, 3))])
        return sums, masked

    def input_gradient(
        self, grad: Tensor, x: Tensor, mean: Tensor, tables: Tensor, line: Tensor, relu: bool
    ) -> Tensor:
        b, c = line
        offset = torch.addcmul(c, b, mean, value=-1)
        masked = self._mask(grad, x, tables) if relu else grad
        dx = torch.mul(masked, _over_map(tables[1]))
        return dx.addcmul_(x.to(b.dtype), _over_map(b)).add_(_over_map(offset)).to(x.dtype)

    def _mask(self, grad: Tensor, x: Tensor, tables: Tensor) -> Tensor:
        masked: Tensor = torch.ops.aten.threshold_backward(grad, self.affine(x, tables), 0)
        return masked
