"""The Triton kernels; triton_backend.py launches them.

One set of kernels serves both memory layouts. A program works on a block of channels by a part of
the pixels of one sample, tile by tile, addressed by strides. A tile is long in the direction in
which memory is contiguous. Each thread sums its own elements of all tiles; the threads' sums are
added after the loop, in a fixed order. So the loops have no barrier, and every call gives the same
bits. Sums have the tables' dtype (fp32 for fp32, fp16 and bf16 activations).

``RELU_MASK`` is the ReLU that masks the gradient: 0 none, 1 with its sign recomputed from x, 2 with
the sign of the output y.
"""

# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(programs, channels, blocks_c, stride_n, stride_c, BC: tl.constexpr):
    """This program's part of the pixels, and its channels: table indices, mask, offsets of maps."""
    part = tl.program_id(0) // programs
    pid = tl.program_id(0) % programs
    n = pid // blocks_c
    c = (pid % blocks_c) * BC + tl.arange(0, BC)
    maps = n.to(tl.int64) * stride_n + c.to(tl.int64) * stride_c
    return part, n * channels + c, c < channels, maps


@triton.jit
def _pixels(first, end, in_c, maps, stride_p, BP: tl.constexpr):
    """Offsets and mask of the elements of BP pixels, starting at ``first``."""
    p = first + tl.arange(0, BP)
    return maps[:, None] + p.to(tl.int64)[None, :] * stride_p, in_c[:, None] & (p < end)[None, :]


@triton.jit
def _mask_gradient(grad, values, at, mask, y, masked, a, b, c, RELU_MASK: tl.constexpr):
    """The gradient after the ReLU mask; stored too if the mask is y's. NaN lets it pass."""
    g = tl.load(grad + at, mask=mask, other=0.0).to(values.dtype)
    if RELU_MASK == 1:
        z = (values - a[:, None]) * b[:, None] + c[:, None]
        # Round as forward did: an output that became 0 has no gradient.
        z = z.to(grad.dtype.element_ty).to(values.dtype)
        g = tl.where(z <= 0.0, 0.0, g)
    if RELU_MASK == 2:
        out = tl.load(y + at, mask=mask, other=0.0)
        g = tl.where(out <= 0.0, 0.0, g)
        tl.store(masked + at, g.to(masked.dtype.element_ty), mask=mask)
    return g


@triton.jit
def _join(means, squares, sizes, count, AXIS: tl.constexpr):
    """Mean and sum of squared deviations of the union of sets along an axis (Chan et al.)."""
    mean = tl.sum(means * sizes, axis=AXIS) / count
    spread = means - tl.expand_dims(mean, AXIS)
    return mean, tl.sum(squares + sizes * spread * spread, axis=AXIS)


@triton.jit
def moments_kernel(
    x, mean_out, square_out, programs, channels, area, per_part, tables, blocks_c, stride_n,
    stride_c, stride_p, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations over this program's part of the pixels; the variance if
    the part is all of them.

    Each element of the tile follows the pixels that it meets (Welford), so that a mean of 1000 with
    a deviation of 1 keeps its variance. They are joined after the loop.
    """
    acc = mean_out.dtype.element_ty
    part, table, in_c, maps = _tile(programs, channels, blocks_c, stride_n, stride_c, BC)
    start = part * per_part
    end = tl.minimum(start + per_part, area)
    mean = tl.zeros([BC, BP], acc)
    square = tl.zeros([BC, BP], acc)
    count = tl.full([], 0.0, acc)
    for first in range(start, end, BP):
        at, mask = _pixels(first, end, in_c, maps, stride_p, BP)
        values = tl.load(x + at, mask=mask, other=0.0).to(acc)
        count += 1.0
        delta = tl.where(mask, values - mean, 0.0)
        mean += delta * (1.0 / count)
        square += delta * (values - mean)
    sizes = ((end - start + BP - 1 - tl.arange(0, BP)) // BP).to(acc)
    joined, total = _join(mean, square, sizes[None, :], (end - start).to(acc), 1)
    if per_part >= area:
        total = total / area
    to = part.to(tl.int64) * tables + table
    tl.store(mean_out + to, joined, mask=in_c)
    tl.store(square_out + to, total, mask=in_c)


@triton.jit
def join_moments_kernel(
    means, squares, mean_out, var_out, area, per_part, tables, parts,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Join parts of the pixels: [parts, N C] -> mean, var [N C]. ``PARTS`` is at least parts."""
    acc = mean_out.dtype.element_ty
    table = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.arange(0, PARTS)
    mask = table < tables
    both = (part < parts)[:, None] & mask[None, :]
    from_ = part.to(tl.int64)[:, None] * tables + table[None, :]
    sizes = tl.maximum(tl.minimum(per_part, area - part * per_part), 0).to(acc)
    mu = tl.load(means + from_, mask=both, other=0.0)
    square = tl.load(squares + from_, mask=both, other=0.0)
    mean, total = _join(mu, square, sizes[:, None], area, 0)
    tl.store(mean_out + table, mean, mask=mask)
    tl.store(var_out + table, total / area, mask=mask)


@triton.jit
def affine_kernel(
    x, center, scale, shift, residual, y, programs, channels, area, per_part, blocks_c, stride_n,
    stride_c, stride_p, RELU: tl.constexpr, RESIDUAL: tl.constexpr, BC: tl.constexpr,
    BP: tl.constexpr,
):  # fmt: skip
    """y = (x - center) * scale + shift, plus the residual, then the ReLU."""
    part, table, in_c, maps = _tile(programs, channels, blocks_c, stride_n, stride_c, BC)
    start = part * per_part
    end = tl.minimum(start + per_part, area)
    a = tl.load(center + table, mask=in_c, other=0.0)
    b = tl.load(scale + table, mask=in_c, other=0.0)
    c = tl.load(shift + table, mask=in_c, other=0.0)
    for first in range(start, end, BP):
        at, mask = _pixels(first, end, in_c, maps, stride_p, BP)
        values = tl.load(x + at, mask=mask, other=0.0).to(a.dtype)
        result = (values - a[:, None]) * b[:, None] + c[:, None]
        if RESIDUAL:
            result += tl.load(residual + at, mask=mask, other=0.0).to(a.dtype)
        if RELU:
            result = tl.where(result <= 0.0, 0.0, result)  # unlike a maximum, this propagates NaN
        tl.store(y + at, result.to(y.dtype.element_ty), mask=mask)


@triton.jit
def gradient_sums_kernel(
    grad, x, mean, sums, products, center, scale, shift, y, masked, programs, channels, area,
    per_part, tables, blocks_c, stride_n, stride_c, stride_p, RELU_MASK: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Sums of g and of g * (x - mean) over this program's part of the pixels."""
    acc = sums.dtype.element_ty
    part, table, in_c, maps = _tile(programs, channels, blocks_c, stride_n, stride_c, BC)
    start = part * per_part
    end = tl.minimum(start + per_part, area)
    mu = tl.load(mean + table, mask=in_c, other=0.0)
    a = mu
    b = mu
    c = mu
    if RELU_MASK == 1:
        a = tl.load(center + table, mask=in_c, other=0.0)
        b = tl.load(scale + table, mask=in_c, other=0.0)
        c = tl.load(shift + table, mask=in_c, other=0.0)
    total = tl.zeros([BC, BP], acc)
    product = tl.zeros([BC, BP], acc)
    for first in range(start, end, BP):
        at, mask = _pixels(first, end, in_c, maps, stride_p, BP)
        values = tl.load(x + at, mask=mask, other=0.0).to(acc)
        g = _mask_gradient(grad, values, at, mask, y, masked, a, b, c, RELU_MASK)
        total += g
        product += g * (values - mu[:, None])
    to = part.to(tl.int64) * tables + table
    tl.store(sums + to, tl.sum(total, axis=1), mask=in_c)
    tl.store(products + to, tl.sum(product, axis=1), mask=in_c)


@triton.jit
def input_gradient_kernel(
    grad, x, mean, a, b, c, center, shift, dx, programs, channels, area, per_part, blocks_c,
    stride_n, stride_c, stride_p, RELU_MASK: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """dx = a * g + b * (x - mean) + c; a is also the scale of the ReLU mask's map."""
    part, table, in_c, maps = _tile(programs, channels, blocks_c, stride_n, stride_c, BC)
    start = part * per_part
    end = tl.minimum(start + per_part, area)
    mu = tl.load(mean + table, mask=in_c, other=0.0)
    scale = tl.load(a + table, mask=in_c, other=0.0)
    x_factor = tl.load(b + table, mask=in_c, other=0.0)
    constant = tl.load(c + table, mask=in_c, other=0.0)
    mask_center = mu
    mask_shift = mu
    if RELU_MASK == 1:
        mask_center = tl.load(center + table, mask=in_c, other=0.0)
        mask_shift = tl.load(shift + table, mask=in_c, other=0.0)
    for first in range(start, end, BP):
        at, mask = _pixels(first, end, in_c, maps, stride_p, BP)
        values = tl.load(x + at, mask=mask, other=0.0).to(mu.dtype)
        g = _mask_gradient(
            grad, values, at, mask, dx, dx, mask_center, scale, mask_shift, RELU_MASK
        )
        result = x_factor[:, None] * (values - mu[:, None]) + constant[:, None]
        result += scale[:, None] * g
        tl.store(dx + at, result.to(dx.dtype.element_ty), mask=mask)
