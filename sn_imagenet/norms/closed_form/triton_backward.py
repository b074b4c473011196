"""Triton kernels for the backward of combining the [N, C] tables, Eqs. (7)-(14): two launches.

The arguments are those of triton_forward.py. ``sums`` [2, N, C] holds backward's sums of dy and of
dy * (x - mean).
"""

# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

from sn_imagenet.norms.closed_form.triton_forward import pick


@triton.jit
def _table_gradients(buffer, sums, gamma, table, at, c, mask, GAMMA: tl.constexpr):
    """dL/dmean (Eq. (8)), dL/dvar (Eq. (7)) of the combined tables; gamma's, beta's gradients."""
    total = tl.load(sums + at, mask=mask, other=0.0)
    product = tl.load(sums + table + at, mask=mask, other=0.0)
    mean = tl.load(buffer + at, mask=mask, other=0.0)
    center = tl.load(buffer + 2 * table + at, mask=mask, other=0.0)
    scale = tl.load(buffer + 3 * table + at, mask=mask, other=0.0)
    rstd = tl.load(buffer + 5 * table + at, mask=mask, other=0.0)
    dscale = product + (mean - center) * total
    drstd = dscale
    if GAMMA:
        drstd = dscale * tl.load(gamma + c, mask=mask, other=0.0).to(dscale.dtype)
    return -scale * total, -0.5 * drstd * rstd * rstd * rstd, dscale * rstd, total


@triton.jit
def _run_gradients(
    buffer, sums, gamma, out, table, first, count, row, channels, entry, entries,
    INNER: tl.constexpr, GAMMA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over one run; with INNER also of dmean * mean and dvar * var, for IN's weights."""
    acc = buffer.dtype.element_ty
    dmean = tl.zeros([BLOCK], acc)
    dvar = tl.zeros([BLOCK], acc)
    in_mean = tl.zeros([BLOCK], acc)
    in_var = tl.zeros([BLOCK], acc)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = i < count
        c = first + i - row * channels
        gm, gv, _, _ = _table_gradients(buffer, sums, gamma, table, first + i, c, mask, GAMMA)
        dmean += tl.where(mask, gm, 0.0)
        dvar += tl.where(mask, gv, 0.0)
        if INNER:
            m = tl.load(buffer + first + i, mask=mask, other=0.0)
            v = tl.load(buffer + table + first + i, mask=mask, other=0.0)
            in_mean += tl.where(mask, gm * m, 0.0)
            in_var += tl.where(mask, gv * v, 0.0)
    tl.store(out + entry, tl.sum(dmean, axis=0))
    tl.store(out + entries + entry, tl.sum(dvar, axis=0))
    if INNER:
        tl.store(out + 2 * entries + entry, tl.sum(in_mean, axis=0))
        tl.store(out + 3 * entries + entry, tl.sum(in_var, axis=0))


@triton.jit
def combine_gradient_sums_kernel(
    buffer, sums, gamma, row_sums, group_sums, column_sums, rows, replicas, channels, groups,
    GN_K: tl.constexpr, GAMMA: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Backward of the averages: sums of the table gradients over each member's sets.

    ``row_sums`` [4, N]: dmean, dvar, dmean * mean, dvar * var. ``group_sums`` [2, N, G].
    ``column_sums`` [4, R, C]: dmean, dvar, and each replica's part of gamma's and beta's gradients.
    """
    acc = buffer.dtype.element_ty
    table = rows * channels
    gn_programs = rows * groups if GN_K >= 0 else 0
    pid = tl.program_id(0)
    if pid < rows:
        _run_gradients(
            buffer, sums, gamma, row_sums, table, pid * channels, channels, pid, channels, pid,
            rows, True, GAMMA, BLOCK,
        )  # fmt: skip
    elif pid < rows + gn_programs:
        entry = pid - rows
        width = channels // groups
        _run_gradients(
            buffer, sums, gamma, group_sums, table, entry * width, width, entry // groups,
            channels, entry, rows * groups, False, GAMMA, BLOCK,
        )  # fmt: skip
    else:
        block = pid - rows - gn_programs
        blocks = tl.cdiv(channels, BLOCK)
        r = block // blocks
        c = (block % blocks) * BLOCK + tl.arange(0, BLOCK)
        in_c = c < channels
        samples = rows // replicas
        dmean = tl.zeros([BLOCK], acc)
        dvar = tl.zeros([BLOCK], acc)
        dgamma = tl.zeros([BLOCK], acc)
        dbeta = tl.zeros([BLOCK], acc)
        for start in range(0, samples, ROWS):
            i = start + tl.arange(0, ROWS)
            mask = (i < samples)[:, None] & in_c[None, :]
            at = ((i * replicas + r) * channels)[:, None] + c[None, :]
            columns = tl.broadcast_to(c[None, :], [ROWS, BLOCK])
            gm, gv, gg, gb = _table_gradients(buffer, sums, gamma, table, at, columns, mask, GAMMA)
            dmean += tl.sum(tl.where(mask, gm, 0.0), axis=0)
            dvar += tl.sum(tl.where(mask, gv, 0.0), axis=0)
            dgamma += tl.sum(tl.where(mask, gg, 0.0), axis=0)
            dbeta += tl.sum(tl.where(mask, gb, 0.0), axis=0)
        out = column_sums + r * channels + c
        size = replicas * channels
        tl.store(out, dmean, mask=in_c)
        tl.store(out + size, dvar, mask=in_c)
        tl.store(out + 2 * size, dgamma, mask=in_c)
        tl.store(out + 3 * size, dbeta, mask=in_c)


@triton.jit
def _inner_products(gradient, table, entries, BLOCK: tl.constexpr):
    """Sums of gradient * table over [entries], for the means and for the variances."""
    acc = gradient.dtype.element_ty
    mean_products = tl.zeros([BLOCK], acc)
    var_products = tl.zeros([BLOCK], acc)
    for start in range(0, entries, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = i < entries
        g = tl.load(gradient + i, mask=mask, other=0.0)
        mean_products += g * tl.load(table + i, mask=mask, other=0.0)
        g = tl.load(gradient + entries + i, mask=mask, other=0.0)
        var_products += g * tl.load(table + entries + i, mask=mask, other=0.0)
    return tl.sum(mean_products, axis=0), tl.sum(var_products, axis=0)


@triton.jit
def _member_gradient(sums, means, entry, entries, size, mean, mask, w, v):
    """A member's part of b and c, from its sums [2, entries] over sets of ``size`` entries."""
    part = v * tl.load(sums + entries + entry, mask=mask, other=0.0) / size
    rest = w * tl.load(sums + entry, mask=mask, other=0.0) / size
    mu = tl.load(means + entry, mask=mask, other=0.0)
    return part, rest + 2 * part * (mean - mu)


@triton.jit
def combine_gradient_kernel(
    buffer, sums, gamma, row_sums, group_sums, column_sums, batch_sums, b_out, c_out,
    logit_gradients, area, rows, replicas, channels, groups, weights_at, ln_at, gn_at, bn_at,
    COUNT: tl.constexpr, IN_K: tl.constexpr, LN_K: tl.constexpr, BN_K: tl.constexpr,
    GN_K: tl.constexpr, STORED: tl.constexpr, LOGITS: tl.constexpr, GAMMA: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """b and c of Eq. (9) for dx = a dy + b (x - mean) + c; the last program does Eqs. (12)-(14).

    ``batch_sums`` [2, R, C] are the first two of ``column_sums``, or their means over the ranks
    that share BN's statistics. The weights' gradients use the rank's own ``column_sums``.
    """
    acc = buffer.dtype.element_ty
    table = rows * channels
    blocks = tl.cdiv(channels, BLOCK)
    k = tl.arange(0, 4)
    w = tl.load(buffer + weights_at + k, mask=k < COUNT, other=0.0)
    v = tl.load(buffer + weights_at + COUNT + k, mask=k < COUNT, other=0.0)
    pid = tl.program_id(0)
    if pid < rows * blocks:
        n = pid // blocks
        c = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
        mask = c < channels
        at = n * channels + c
        mean = tl.load(buffer + at, mask=mask, other=0.0)
        gm, gv, _, _ = _table_gradients(buffer, sums, gamma, table, at, c, mask, GAMMA)
        x_factor = tl.zeros([BLOCK], acc)
        constant = tl.zeros([BLOCK], acc)
        if IN_K >= 0:
            x_factor += pick(v, IN_K) * gv
            constant += pick(w, IN_K) * gm
        if LN_K >= 0:
            part = pick(v, LN_K) * tl.load(row_sums + rows + n) / channels
            x_factor += part
            constant += pick(w, LN_K) * tl.load(row_sums + n) / channels
            constant += 2 * part * (mean - tl.load(buffer + ln_at + n))
        if BN_K >= 0 and not STORED:
            entry = (n % replicas) * channels + c
            samples = rows // replicas
            part, rest = _member_gradient(
                batch_sums, buffer + bn_at, entry, replicas * channels, samples, mean, mask,
                pick(w, BN_K), pick(v, BN_K),
            )  # fmt: skip
            x_factor += part
            constant += rest
        if GN_K >= 0:
            width = channels // groups
            entry = n * groups + c // width
            part, rest = _member_gradient(
                group_sums, buffer + gn_at, entry, rows * groups, width, mean, mask,
                pick(w, GN_K), pick(v, GN_K),
            )  # fmt: skip
            x_factor += part
            constant += rest
        tl.store(b_out + at, 2 * x_factor / area, mask=mask)
        tl.store(c_out + at, constant / area, mask=mask)
    elif LOGITS:
        mean_products = tl.zeros([4], acc)
        var_products = tl.zeros([4], acc)
        if IN_K >= 0:
            first = tl.zeros([BLOCK], acc)
            second = tl.zeros([BLOCK], acc)
            for start in range(0, rows, BLOCK):
                i = start + tl.arange(0, BLOCK)
                first += tl.load(row_sums + 2 * rows + i, mask=i < rows, other=0.0)
                second += tl.load(row_sums + 3 * rows + i, mask=i < rows, other=0.0)
            mean_products += tl.where(k == IN_K, tl.sum(first, axis=0), 0.0)
            var_products += tl.where(k == IN_K, tl.sum(second, axis=0), 0.0)
        if LN_K >= 0:
            one, two = _inner_products(row_sums, buffer + ln_at, rows, BLOCK)
            mean_products += tl.where(k == LN_K, one, 0.0)
            var_products += tl.where(k == LN_K, two, 0.0)
        if BN_K >= 0:
            one, two = _inner_products(column_sums, buffer + bn_at, replicas * channels, BLOCK)
            mean_products += tl.where(k == BN_K, one, 0.0)
            var_products += tl.where(k == BN_K, two, 0.0)
        if GN_K >= 0:
            one, two = _inner_products(group_sums, buffer + gn_at, rows * groups, BLOCK)
            mean_products += tl.where(k == GN_K, one, 0.0)
            var_products += tl.where(k == GN_K, two, 0.0)
        dmean = w * (mean_products - tl.sum(w * mean_products, axis=0))
        dvar = v * (var_products - tl.sum(v * var_products, axis=0))
        tl.store(logit_gradients + k, dmean, mask=k < COUNT)
        tl.store(logit_gradients + COUNT + k, dvar, mask=k < COUNT)
