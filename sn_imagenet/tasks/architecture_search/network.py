"""The controller and the shared weights as one network, which checkpoints hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sn_imagenet.models.cell import CELLS, OPERATIONS, Architecture, CellNetwork
from sn_imagenet.tasks.architecture_search.controller import Controller


def to_architectures(decisions: Tensor) -> list[Architecture]:
    """The architectures of ``decisions`` [M, D]."""
    architectures: list[Architecture] = []
    for cells in decisions.unflatten(1, (2, -1, 4)).tolist():
        blocks = [[[i, OPERATIONS[a], j, OPERATIONS[b]] for i, a, j, b in cell] for cell in cells]
        architectures.append(dict(zip(CELLS, blocks, strict=True)))
    return architectures


class SearchNetwork(nn.Module):
    """A policy and the weights that all its architectures share.

    Buffers: ``baseline`` [], the moving average of rewards; ``champion`` int64 [1, D], the
    decisions with the highest reward of an epoch, and ``record`` [2], that epoch and reward.
    """

    baseline: Tensor
    champion: Tensor
    record: Tensor

    def __init__(self, policy: Controller, child: CellNetwork) -> None:
        super().__init__()
        self.policy = policy
        self.child = child
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("champion", torch.zeros(1, 8 * child.blocks, dtype=torch.int64))
        self.register_buffer("record", torch.tensor([-1.0, 0.0]))

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

    @torch.no_grad()
    def remember_best(self, decisions: Tensor, rewards: Tensor, epoch: int) -> None:
        """Keep the best of an epoch's architectures: ``decisions`` [M, D], ``rewards`` [M]."""
        reward, best = rewards.to(self.record).max(0)
        is_better = (self.record[0] != epoch) | (reward > self.record[1])
        record = torch.stack([torch.full_like(reward, epoch), reward])
        self.champion.copy_(torch.where(is_better, decisions[best], self.champion))
        self.record.copy_(torch.where(is_better, record, self.record))
