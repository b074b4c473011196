"""The passes as Triton kernels; see triton_backend.py for how they are launched.

One set of kernels serves both memory layouts: a program works on a tile of channels by pixels of
one sample, addressed by strides, and the tile is long in whichever direction memory is contiguous.
Sums are of the tables' dtype (fp32 for fp32, fp16 and bf16 activations).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(channels, area, blocks_c, stride_n, stride_c, BC: tl.constexpr):  # noqa: N803
    """This program's sample and channels: table indices, their mask, offsets of their maps."""
    pid = tl.program_id(0)
    n = pid // blocks_c
    c = (pid % blocks_c) * BC + tl.arange(0, BC)
    maps = n.to(tl.int64) * stride_n + c.to(tl.int64) * stride_c
    return n * channels + c, c < channels, maps


@triton.jit
def moments_kernel(
    x,
    mean_out,
    square_out,
    channels,
    area,
    per_split,
    tables,
    blocks_c,
    stride_n,
    stride_c,
    stride_p,
    BC: tl.constexpr,  # noqa: N803
    BP: tl.constexpr,  # noqa: N803
):
    """Mean and sum of squared deviations of this program's share of the pixels; the variance at
    once where it has them all.

    Each tile is centred on its own mean and joined to the rest by Chan et al.'s update, so that a
    mean of 1000 with a deviation of 1 keeps its variance.
    """
    acc = mean_out.dtype.element_ty
    table, in_c, maps = _tile(channels, area, blocks_c, stride_n, stride_c, BC)
    start = tl.program_id(1) * per_split
    end = tl.minimum(start + per_split, area)
    mean = tl.zeros([BC], acc)
    square = tl.zeros([BC], acc)
    count = 0
    for first in range(start, end, BP):
        p = first + tl.arange(0, BP)
        mask = in_c[:, None] & (p < end)[None, :]
        values = tl.load(x + maps[:, None] + p[None, :] * stride_p, mask=mask, other=0.0).to(acc)
        size = tl.minimum(end - first, BP)
        mu = tl.sum(values, axis=1) / size
        centered = tl.where(mask, values - mu[:, None], 0.0)
        delta = mu - mean
        share = size.to(acc) / (count + size).to(acc)
        square += tl.sum(centered * centered, axis=1) + delta * delta * (share * count)
        mean += delta * share
        count += size
    if tl.num_programs(1) == 1:
        square = square / area
    at = tl.program_id(1) * tables + table
    tl.store(mean_out + at, mean, mask=in_c)
    tl.store(square_out + at, square, mask=in_c)


@triton.jit
def join_moments_kernel(
    means,
    squares,
    mean_out,
    var_out,
    area,
    per_split,
    tables,
    splits,
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Chan et al.'s update over the shares of the pixels: [splits, N C] -> mean, var [N C]."""
    acc = mean_out.dtype.element_ty
    table = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = table < tables
    mean = tl.zeros([BLOCK], acc)
    square = tl.zeros([BLOCK], acc)
    count = 0
    for split in range(0, splits):
        size = tl.minimum(per_split, area - split * per_split)
        mu = tl.load(means + split * tables + table, mask=mask, other=0.0)
        delta = mu - mean
        share = size.to(acc) / (count + size).to(acc)
        square += tl.load(squares + split * tables + table, mask=mask, other=0.0)
        square += delta * delta * (share * count)
        mean += delta * share
        count += size
    tl.store(mean_out + table, mean, mask=mask)
    tl.store(var_out + table, square / area, mask=mask)


@triton.jit
def affine_kernel(
    x,
    center,
    scale,
    shift,
    y,
    channels,
    area,
    blocks_c,
    stride_n,
    stride_c,
    stride_p,
    BC: tl.constexpr,  # noqa: N803
    BP: tl.constexpr,  # noqa: N803
):
    """y = (x - center) * scale + shift."""
    table, in_c, maps = _tile(channels, area, blocks_c, stride_n, stride_c, BC)
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    mask = in_c[:, None] & (p < area)[None, :]
    at = maps[:, None] + p[None, :] * stride_p
    a = tl.load(center + table, mask=in_c, other=0.0)
    b = tl.load(scale + table, mask=in_c, other=0.0)
    c = tl.load(shift + table, mask=in_c, other=0.0)
    values = tl.load(x + at, mask=mask, other=0.0).to(a.dtype)
    result = (values - a[:, None]) * b[:, None] + c[:, None]
    tl.store(y + at, result.to(y.dtype.element_ty), mask=mask)


@triton.jit
def gradient_sums_kernel(
    grad,
    x,
    mean,
    sums,
    products,
    channels,
    area,
    per_split,
    tables,
    blocks_c,
    stride_n,
    stride_c,
    stride_p,
    BC: tl.constexpr,  # noqa: N803
    BP: tl.constexpr,  # noqa: N803
):
    """Sums of grad and of grad * (x - mean) over this program's share of the pixels."""
    acc = sums.dtype.element_ty
    table, in_c, maps = _tile(channels, area, blocks_c, stride_n, stride_c, BC)
    start = tl.program_id(1) * per_split
    end = tl.minimum(start + per_split, area)
    mu = tl.load(mean + table, mask=in_c, other=0.0)
    total = tl.zeros([BC], acc)
    product = tl.zeros([BC], acc)
    for first in range(start, end, BP):
        p = first + tl.arange(0, BP)
        mask = in_c[:, None] & (p < end)[None, :]
        at = maps[:, None] + p[None, :] * stride_p
        g = tl.load(grad + at, mask=mask, other=0.0).to(acc)
        values = tl.load(x + at, mask=mask, other=0.0).to(acc)
        total += tl.sum(g, axis=1)
        product += tl.sum(g * (values - mu[:, None]), axis=1)
    at_table = tl.program_id(1) * tables + table
    tl.store(sums + at_table, total, mask=in_c)
    tl.store(products + at_table, product, mask=in_c)


@triton.jit
def input_gradient_kernel(
    grad,
    x,
    mean,
    a,
    b,
    c,
    dx,
    channels,
    area,
    blocks_c,
    stride_n,
    stride_c,
    stride_p,
    BC: tl.constexpr,  # noqa: N803
    BP: tl.constexpr,  # noqa: N803
):
    """dx = a * grad + b * (x - mean) + c."""
    table, in_c, maps = _tile(channels, area, blocks_c, stride_n, stride_c, BC)
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    mask = in_c[:, None] & (p < area)[None, :]
    at = maps[:, None] + p[None, :] * stride_p
    mu = tl.load(mean + table, mask=in_c, other=0.0)
    at_grad = tl.load(a + table, mask=in_c, other=0.0)
    at_x = tl.load(b + table, mask=in_c, other=0.0)
    constant = tl.load(c + table, mask=in_c, other=0.0)
    g = tl.load(grad + at, mask=mask, other=0.0).to(mu.dtype)
    values = tl.load(x + at, mask=mask, other=0.0).to(mu.dtype)
    result = at_grad[:, None] * g + (at_x[:, None] * (values - mu[:, None]) + constant[:, None])
    tl.store(dx + at, result.to(dx.dtype.element_ty), mask=mask)
