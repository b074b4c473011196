"""The layers against the paper's formulas: Fig. 7, Eqs. (1)-(5), Eqs. (6)-(14)."""

from __future__ import annotations

import pytest
import torch
from norm_reference import (
    BACKENDS,
    OMEGAS,
    activation,
    check_switch_norm,
    member_moments,
    randomize,
)
from torch import Tensor

from sn_imagenet.norms import (
    BatchNorm2d,
    GroupNorm2d,
    InstanceNorm2d,
    LayerNorm2d,
    MomentNorm2d,
    SwitchNorm2d,
)

METHODS: dict[str, type[MomentNorm2d]] = {
    "in": InstanceNorm2d,
    "ln": LayerNorm2d,
    "bn": BatchNorm2d,
    "gn": GroupNorm2d,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("omega", OMEGAS, ids="+".join)
def test_switch_norm_equals_fig_7(omega: tuple[str, ...], replicas: int, backend: str) -> None:
    check_switch_norm(activation(8, 6, 3, 5), 1e-11, backend, omega=omega, replicas=replicas)


def test_gradients_equal_eqs_6_to_14() -> None:
    """Eqs. (6)-(14) use one set of weights for means and variances.

    The layer has two sets (Eq. (4)), so its two gradients sum to that of the equations. As printed,
    Eq. (9) has two errors, both checked here: its left-hand side is dL/dh, not dL/dh~, and its
    first term needs dL/dh~ = dL/dh^ * gamma of Eq. (6) instead of dL/dh^. Eqs. (7) and (8) hold per
    (n, c). The sums over c and n in Eq. (9) are over the [N, C] tables of Eqs. (7) and (8).
    Eqs. (12)-(14) are correct.
    """
    n, c, h, w = 4, 5, 3, 2
    eps = 1e-5
    x = activation(n, c, h, w)
    layer = SwitchNorm2d(c, eps, dtype=torch.float64)
    randomize(layer)
    with torch.no_grad():
        layer.var_weight.copy_(layer.mean_weight)
    y = layer(x)
    direction = torch.randn_like(y)
    dx, dgamma, dbeta, dmean_weight, dvar_weight = torch.autograd.grad(
        y, [x, layer.weight, layer.bias, layer.mean_weight, layer.var_weight], direction
    )

    with torch.no_grad():
        names = ("in", "ln", "bn")
        weight = dict(zip(names, layer.mean_weight.softmax(0), strict=True))
        mu_k, var_k = {}, {}
        for k in names:
            mu_k[k], var_k[k] = (t.expand(n, c, 1, 1) for t in member_moments(x, k))
        mu = sum(weight[k] * mu_k[k] for k in names)
        var = sum(weight[k] * var_k[k] for k in names)
        normal = (x - mu) / (var + eps).sqrt()
        over_map = {"dim": (2, 3), "keepdim": True}

        dnormal = direction * layer.weight[:, None, None]  # (6)
        dvar = -(dnormal * normal).sum(**over_map) / (2 * (var + eps))  # (7)
        dmu = -dnormal.sum(**over_map) / (var + eps).sqrt()  # (8)

        def through_statistics() -> Tensor:
            total = 2 * weight["in"] * (x - mu_k["in"]) / (h * w) * dvar
            total += 2 * weight["ln"] * (x - mu_k["ln"]) / (c * h * w) * dvar.sum(1, keepdim=True)
            total += 2 * weight["bn"] * (x - mu_k["bn"]) / (n * h * w) * dvar.sum(0, keepdim=True)
            total += weight["in"] / (h * w) * dmu
            total += weight["ln"] / (c * h * w) * dmu.sum(1, keepdim=True)
            total += weight["bn"] / (n * h * w) * dmu.sum(0, keepdim=True)
            return total

        corrected = dnormal / (var + eps).sqrt() + through_statistics()  # (9)
        as_printed = direction / (var + eps).sqrt() + through_statistics()
        torch.testing.assert_close(dx, corrected, rtol=1e-10, atol=1e-11)
        assert (dx - as_printed).abs().max() > 1e-2

        torch.testing.assert_close(dgamma, (direction * normal).sum((0, 2, 3)))  # (10)
        torch.testing.assert_close(dbeta, direction.sum((0, 2, 3)))  # (11)

        inner = {k: (dmu * mu_k[k] + dvar * var_k[k]).sum() for k in names}
        for index, k in enumerate(names):  # (12)-(14)
            expected = weight[k] * (1 - weight[k]) * inner[k]
            expected -= sum(weight[k] * weight[z] * inner[z] for z in names if z != k)
            torch.testing.assert_close(dmean_weight[index] + dvar_weight[index], expected)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("omega", OMEGAS, ids="+".join)
def test_switch_norm_passes_gradcheck(omega: tuple[str, ...], training: bool) -> None:
    layer = SwitchNorm2d(4, omega=omega, num_groups=2, dtype=torch.float64).train(training)
    randomize(layer)
    check_gradients(layer)


def check_gradients(layer: MomentNorm2d) -> None:
    names = [name for name, _ in layer.named_parameters()]
    leaves = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        values = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, values, (x,))

    layer.momentum = 0.0  # keeps the running statistics fixed between evaluations
    assert torch.autograd.gradcheck(function, (activation(4, 4, 2, 2), *leaves))


@pytest.mark.parametrize("member", METHODS)
def test_extreme_logits_select_one_member(member: str) -> None:
    x = activation(6, 8, 3, 3)
    layer = SwitchNorm2d(8, omega=("in", "ln", "bn", "gn"), num_groups=2, dtype=torch.float64)
    chosen = METHODS[member](8, dtype=torch.float64)
    if isinstance(chosen, GroupNorm2d):
        chosen.num_groups = 2
    with torch.no_grad():
        for logits in (layer.mean_weight, layer.var_weight):
            logits.fill_(-1e3)
            logits[layer.omega.index(member)] = 1e3
    torch.testing.assert_close(layer(x), chosen(x), rtol=0, atol=0)


def test_importance_weights_are_the_softmax_of_the_logits() -> None:
    layer = SwitchNorm2d(3)
    with torch.no_grad():
        layer.mean_weight.copy_(torch.tensor([0.0, 1.0, 2.0]))
    weights = layer.importance_weights()
    assert list(weights["mean"]) == ["in", "ln", "bn"]
    expected = torch.tensor([0.0, 1.0, 2.0]).double().softmax(0).tolist()
    assert list(weights["mean"].values()) == pytest.approx(expected)
    assert list(weights["variance"].values()) == pytest.approx([1 / 3] * 3)
