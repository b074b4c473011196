"""The controller of ENAS's micro search: an LSTM that chooses the blocks of two cells, and the
weights that all architectures share.

For each block it chooses two inputs and two operations: *decisions*, integers in the order
``[input, operation, input, operation]``, the normal cell first, 8 per block in all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sn_imagenet.config import NormConfig
from sn_imagenet.config.checks import require, require_one_of
from sn_imagenet.errors import ConfigError
from sn_imagenet.models import norm_layer
from sn_imagenet.models.cell import CELLS, KERNELS, OPERATIONS, Architecture, CellNetwork
from sn_imagenet.norms import GroupNorm2d, LayerNorm2d, SwitchNorm1d, SwitchNorm2d
from sn_imagenet.norms.methods import METHODS

UNITS = 64
NormOf = Callable[[int, int], nn.Module]
"""(number of features, groups) -> a layer for [M, features]."""


@dataclass(frozen=True)
class ControllerOptions:
    """``task.controller``; ``configs/task/architecture_search.yaml`` explains the options."""

    steps: int
    samples: int
    learning_rate: float
    beta1: float
    eps: float
    tanh: float
    op_tanh: float
    temperature: float
    op_bias: float
    fixed_op_bias: float
    entropy_weight: float
    baseline_decay: float

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if key in ("beta1", "baseline_decay"):
                require(0 <= value < 1, f"task.controller.{key}={value}: expected 0 <= b < 1")
            elif key not in ("op_bias", "fixed_op_bias", "entropy_weight"):
                require(value > 0, f"task.controller.{key}={value}: expected > 0")


class Sampled(NamedTuple):
    """M architectures: ``decisions`` int64 [M, 8 * blocks]; ``log_prob`` [M], of all decisions;
    ``entropy`` [M], the sum of the entropies of their distributions."""

    decisions: Tensor
    log_prob: Tensor
    entropy: Tensor


class Controller(nn.Module):
    """The policy. Calling it samples ``count`` architectures, or evaluates given ``decisions``.

    Placement ``lstm`` is that of Ba et al. (2016), appendix: norm(W_x x) + norm(W_h h), and norm(c)
    within the tanh of the output. ``gates`` is one layer on W_x x + W_h h. The groups of these
    4 * 64 pre-activations are the four gates; the cell state c is one group.

    Args:
        uniform: whether every choice is uniform, whatever the LSTM says: random search.
    """

    def __init__(
        self, blocks: int, options: ControllerOptions, placement: str, norm: NormOf, uniform: bool
    ) -> None:
        super().__init__()
        require_one_of("task.placement", placement, ("lstm", "gates"))
        self.blocks, self.options, self.uniform = blocks, options, uniform
        both = placement == "lstm"
        self.norm_input = norm(4 * UNITS, 4) if both else nn.Identity()
        self.norm_hidden = norm(4 * UNITS, 4) if both else nn.Identity()
        self.norm_gates = nn.Identity() if both else norm(4 * UNITS, 4)
        self.norm_cell = norm(UNITS, 1) if both else nn.Identity()
        self.input_weight = _uniform(UNITS, 4 * UNITS)
        self.hidden_weight = _uniform(UNITS, 4 * UNITS)
        self.start = _uniform(UNITS)
        self.op_inputs = _uniform(len(OPERATIONS), UNITS)
        self.op_weight = _uniform(UNITS, len(OPERATIONS))
        self.op_bias = nn.Parameter(_bias(options.op_bias, 0.0))
        self.key_weight = _uniform(UNITS, UNITS)
        self.query_weight = _uniform(UNITS, UNITS)
        self.score_weight = _uniform(UNITS)

    def forward(self, count: int, decisions: Tensor | None = None) -> Sampled:
        if decisions is not None:
            # In the order of the choices: both inputs of a block, then both operations.
            count, decisions = len(decisions), decisions.unflatten(1, (-1, 2, 2)).mT.flatten(1)
        self._given, self._chosen = decisions, list[Tensor]()
        self._log_prob = self._entropy = self.start.new_zeros(count)
        h = c = self.start.new_zeros(count, UNITS)
        for is_normal in (True, False):  # the reduction cell continues with h and c
            h, c = self._choose_cell(h, c, is_normal)
        chosen = torch.stack(self._chosen, 1).unflatten(1, (-1, 2, 2)).mT.flatten(1)
        return Sampled(chosen, self._log_prob, self._entropy)

    def _choose_cell(self, h: Tensor, c: Tensor, is_normal: bool) -> tuple[Tensor, Tensor]:
        options, start, rows = self.options, self.start.expand_as(h), torch.arange(len(h))
        fixed = _bias(options.fixed_op_bias, -options.fixed_op_bias).to(start) * is_normal
        states, keys = [], []
        for _ in range(2):
            h, c = self._step(start, h, c)
            states.append(torch.zeros_like(h))
            keys.append(h @ self.key_weight)
        for _ in range(self.blocks):
            x = start
            for _ in range(2):
                h, c = self._step(x, h, c)
                queries = torch.stack(keys, 1) + (h @ self.query_weight)[:, None]
                scores = torch.tanh(queries) @ self.score_weight
                chosen = self._choose(options.tanh * torch.tanh(scores / options.temperature))
                x = torch.stack(states, 1)[rows.to(h.device), chosen]
            for _ in range(2):
                h, c = self._step(x, h, c)
                logits = (h @ self.op_weight + self.op_bias) / options.temperature
                chosen = self._choose(options.op_tanh * torch.tanh(logits) + fixed)
                x = self.op_inputs[chosen]
            h, c = self._step(x, h, c)
            states.append(h)
            keys.append(h @ self.key_weight)
        return h, c

    def _step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        from_input = self.norm_input(x @ self.input_weight)
        gates = self.norm_gates(from_input + self.norm_hidden(h @ self.hidden_weight))
        i, f, o, g = gates.chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.norm_cell(c)), c

    def _choose(self, logits: Tensor) -> Tensor:
        """Choose from ``logits`` [M, K]; int64 [M]. Draws are from the global generator."""
        log_p = (logits * (not self.uniform)).log_softmax(1)
        if self._given is None:
            chosen = torch.multinomial(log_p.detach().exp(), 1)[:, 0]
        else:
            chosen = self._given[:, len(self._chosen)]
        self._chosen.append(chosen)
        self._log_prob = self._log_prob + log_p.gather(1, chosen[:, None])[:, 0]
        self._entropy = self._entropy - (log_p.exp() * log_p).sum(1)
        return chosen


def controller_args(norm: NormConfig) -> dict[str, Any]:
    """The arguments of a method in the controller: GN has a group for each gate, and SN combines LN
    and GN (Sec. 4.4)."""
    args = dict(norm.args)
    if "omega" in args and not set(args["omega"]) <= {"ln", "gn"}:
        args["omega"] = ["ln", "gn"]
    return {**args, "num_groups": 4} if {"omega", "num_groups"} & args.keys() else args


def norm_of(norm: NormConfig) -> NormOf:
    """The layers of a method for the controller.

    Raises:
        ConfigError: the method needs maps or other samples, which an LSTM does not have.
    """
    if norm.target == "torch.nn.Identity":
        return lambda features, groups: nn.Identity()
    args = controller_args(norm)
    layer = norm_layer(replace(norm, args=args))
    others = set(METHODS.values()) - {LayerNorm2d, GroupNorm2d, SwitchNorm2d}
    if layer.func in others or layer(UNITS).stores_statistics:
        raise ConfigError(
            f"norm={norm.name}: does not apply to an LSTM, which has neither maps nor a batch; "
            "expected ln, gn, sn, none, random, or your own method with per-sample statistics"
        )

    def build(features: int, groups: int) -> nn.Module:
        if layer.func is SwitchNorm2d and groups > 1:
            return SwitchNorm1d(features, **args)
        # With one group GN is LN, and SN has nothing to choose from.
        single = groups == 1 and "num_groups" in args
        of_maps = LayerNorm2d(features) if single else layer(features)
        return nn.Sequential(nn.Unflatten(1, (features, 1, 1)), of_maps, nn.Flatten())

    return build


def to_architectures(decisions: Tensor) -> list[Architecture]:
    """The architectures of ``decisions`` [M, D]."""
    architectures: list[Architecture] = []
    for cells in decisions.unflatten(1, (2, -1, 4)).tolist():
        blocks = [[[i, OPERATIONS[a], j, OPERATIONS[b]] for i, a, j, b in cell] for cell in cells]
        architectures.append(dict(zip(CELLS, blocks, strict=True)))
    return architectures


class SearchNetwork(nn.Module):
    """The controller and the weights that its architectures share, as one network, which
    checkpoints hold, with ``baseline`` [], the moving average of rewards."""

    baseline: Tensor

    def __init__(self, policy: Controller, child: CellNetwork) -> None:
        super().__init__()
        self.policy = policy
        self.child = child
        self.register_buffer("baseline", torch.zeros(()))

    def forward(self, part: str, *inputs: Any) -> Any:
        """``forward("policy", count)`` samples architectures; ``forward("child", images,
        architecture)`` returns logits."""
        return getattr(self, part)(*inputs)

    @torch.no_grad()
    def advantages(self, rewards: Tensor, decay: float) -> Tensor:
        """Rewards [M] minus the baseline, which each of them updates before it is used."""
        gaps = []
        for reward in rewards.to(self.baseline).unbind():
            self.baseline.lerp_(reward, 1 - decay)
            gaps.append(reward - self.baseline)
        return torch.stack(gaps)


def _uniform(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-0.1, 0.1))


def _bias(with_weights: float, without: float) -> Tensor:
    """[operations]: one value for those with weights, one for the others."""
    return torch.tensor([with_weights if op in KERNELS else without for op in OPERATIONS])
