"""Triton kernels that combine the [N, C] tables in forward: two launches.

``buffer`` holds the tables of a forward pass in the order of combiner.py's Layout: mean, var,
center, scale, shift, 1 / std, each [N, C], the weights, then the mean and variance of each member
but IN. ``at`` arguments are offsets in it. ``*_K`` is a member's index among the weights, or -1 if
Omega lacks it. LN is GN with one group.

The first kernel reduces (one program per sample and channel group, one per block of channels and
replica). The second applies the results entry by entry. Backward (triton_backward) does the same.
"""

# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _run_statistics(buffer, table, first, count, entry, entries, at, BLOCK: tl.constexpr):
    """Mean and variance of one run of ``count`` entries, by the law of total variance (Eq. (5))."""
    acc = buffer.dtype.element_ty
    total = tl.zeros([BLOCK], acc)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(buffer + first + i, mask=i < count, other=0.0)
    mu = tl.sum(total, axis=0) / count
    rest = tl.zeros([BLOCK], acc)
    spread = tl.zeros([BLOCK], acc)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = i < count
        m = tl.where(mask, tl.load(buffer + first + i, mask=mask, other=0.0) - mu, 0.0)
        rest += m
        spread += tl.load(buffer + table + first + i, mask=mask, other=0.0) + m * m
    # The rounding error of a large mean.
    left = tl.sum(rest, axis=0) / count
    tl.store(buffer + at + entry, mu + left)
    tl.store(buffer + at + entries + entry, tl.sum(spread, axis=0) / count - left * left)


@triton.jit
def combine_statistics_kernel(
    buffer, stored_mean, stored_var, rows, replicas, channels, groups, ln_at, gn_at, bn_at,
    LN_K: tl.constexpr, GN_K: tl.constexpr, STORED: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Mean and variance of each member but IN."""
    acc = buffer.dtype.element_ty
    table = rows * channels
    ln_programs = rows if LN_K >= 0 else 0
    gn_programs = rows * groups if GN_K >= 0 else 0
    pid = tl.program_id(0)
    if pid < ln_programs:
        _run_statistics(buffer, table, pid * channels, channels, pid, rows, ln_at, BLOCK)
    elif pid < ln_programs + gn_programs:
        entry = pid - ln_programs
        width = channels // groups
        _run_statistics(buffer, table, entry * width, width, entry, rows * groups, gn_at, BLOCK)
    else:
        block = pid - ln_programs - gn_programs
        blocks = tl.cdiv(channels, BLOCK)
        r = block // blocks
        c = (block % blocks) * BLOCK + tl.arange(0, BLOCK)
        in_c = c < channels
        at = buffer + bn_at + r * channels + c
        if STORED:
            tl.store(at, tl.load(stored_mean + c, mask=in_c, other=0.0), mask=in_c)
            var = tl.load(stored_var + c, mask=in_c, other=0.0)
            tl.store(at + replicas * channels, var, mask=in_c)
        else:
            samples = rows // replicas
            total = tl.zeros([BLOCK], acc)
            for start in range(0, samples, ROWS):
                i = start + tl.arange(0, ROWS)
                mask = (i < samples)[:, None] & in_c[None, :]
                from_ = ((i * replicas + r) * channels)[:, None] + c[None, :]
                total += tl.sum(tl.load(buffer + from_, mask=mask, other=0.0), axis=0)
            mu = total / samples
            rest = tl.zeros([BLOCK], acc)
            spread = tl.zeros([BLOCK], acc)
            for start in range(0, samples, ROWS):
                i = start + tl.arange(0, ROWS)
                mask = (i < samples)[:, None] & in_c[None, :]
                from_ = ((i * replicas + r) * channels)[:, None] + c[None, :]
                m = tl.load(buffer + from_, mask=mask, other=0.0) - mu[None, :]
                m = tl.where(mask, m, 0.0)
                rest += tl.sum(m, axis=0)
                v = tl.load(buffer + table + from_, mask=mask, other=0.0)
                spread += tl.sum(v + m * m, axis=0)
            left = rest / samples
            tl.store(at, mu + left, mask=in_c)
            tl.store(at + replicas * channels, spread / samples - left * left, mask=in_c)


@triton.jit
def _softmax(logits, K: tl.constexpr, acc: tl.constexpr):
    """Eq. (4), in four lanes for up to four members."""
    k = tl.arange(0, 4)
    values = tl.load(logits + k, mask=k < K, other=-float("inf")).to(acc)
    powers = tl.where(k < K, tl.exp(values - tl.max(values, axis=0)), 0.0)
    return powers / tl.sum(powers, axis=0)


@triton.jit
def pick(weights, K: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, 4) == K, weights, 0.0), axis=0)


@triton.jit
def combine_coefficients_kernel(
    buffer, mean_logits, var_logits, gamma, beta, running_mean, running_var, batches, rows,
    replicas, channels, groups, weights_at, ln_at, gn_at, bn_at, values, COUNT: tl.constexpr,
    IN_K: tl.constexpr, LN_K: tl.constexpr, BN_K: tl.constexpr, GN_K: tl.constexpr,
    LOGITS: tl.constexpr, GAMMA: tl.constexpr, BETA: tl.constexpr, EPS: tl.constexpr,
    MOMENTUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Eq. (3): center, scale, shift and 1 / std of a block of one sample's channels.

    Unless ``MOMENTUM`` is -1, the first sample's programs also update the running statistics from
    the first replica's, which have ``values`` values, and count the batch.
    """
    acc = buffer.dtype.element_ty
    table = rows * channels
    blocks = tl.cdiv(channels, BLOCK)
    n = tl.program_id(0) // blocks
    c = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = c < channels
    at = n * channels + c
    if LOGITS:
        w = _softmax(mean_logits, COUNT, acc)
        v = _softmax(var_logits, COUNT, acc)
    else:
        w = tl.zeros([4], acc) + 1.0
        v = tl.zeros([4], acc) + 1.0
    k = tl.arange(0, 4)
    if tl.program_id(0) == 0:
        tl.store(buffer + weights_at + k, w, mask=k < COUNT)
        tl.store(buffer + weights_at + COUNT + k, v, mask=k < COUNT)
    mean = tl.zeros([BLOCK], acc)
    var = tl.zeros([BLOCK], acc)
    if IN_K >= 0:
        mean += pick(w, IN_K) * tl.load(buffer + at, mask=mask, other=0.0)
        var += pick(v, IN_K) * tl.load(buffer + table + at, mask=mask, other=0.0)
    if LN_K >= 0:
        mean += pick(w, LN_K) * tl.load(buffer + ln_at + n)
        var += pick(v, LN_K) * tl.load(buffer + ln_at + rows + n)
    if BN_K >= 0:
        entry = buffer + bn_at + (n % replicas) * channels + c
        mean += pick(w, BN_K) * tl.load(entry, mask=mask, other=0.0)
        var += pick(v, BN_K) * tl.load(entry + replicas * channels, mask=mask, other=0.0)
    if GN_K >= 0:
        entry = buffer + gn_at + n * groups + c // (channels // groups)
        mean += pick(w, GN_K) * tl.load(entry, mask=mask, other=0.0)
        var += pick(v, GN_K) * tl.load(entry + rows * groups, mask=mask, other=0.0)
    rstd = 1.0 / tl.sqrt(var + EPS)
    scale = rstd
    offset = tl.zeros([BLOCK], acc)
    if GAMMA:
        scale = rstd * tl.load(gamma + c, mask=mask, other=0.0).to(acc)
    if BETA:
        offset = tl.load(beta + c, mask=mask, other=0.0).to(acc)
    tl.store(buffer + 2 * table + at, mean, mask=mask)
    tl.store(buffer + 3 * table + at, scale, mask=mask)
    tl.store(buffer + 4 * table + at, offset, mask=mask)
    tl.store(buffer + 5 * table + at, rstd, mask=mask)
    if MOMENTUM >= 0:  # noqa: SIM102 - decided when compiling, the next when running
        if n == 0:
            size = tl.full([], 0, acc) + values
            unbias = size / tl.maximum(size - 1, 1)
            batch_var = tl.load(buffer + bn_at + replicas * channels + c, mask=mask, other=0.0)
            batch_mean = tl.load(buffer + bn_at + c, mask=mask, other=0.0)
            _lerp(running_mean + c, mask, batch_mean, MOMENTUM)
            _lerp(running_var + c, mask, batch_var * unbias, MOMENTUM)
            if tl.program_id(0) == 0:
                tl.store(batches, tl.load(batches) + 1)


@triton.jit
def _lerp(into, mask, end, weight: tl.constexpr):
    """Move the statistics at ``into`` towards ``end``, like torch.lerp."""
    start = tl.load(into, mask=mask, other=0.0).to(end.dtype)
    if weight < 0.5:
        result = start + weight * (end - start)
    else:
        result = end - (end - start) * (1.0 - weight)
    tl.store(into, result, mask=mask)
