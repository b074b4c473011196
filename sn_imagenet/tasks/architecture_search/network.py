"""The controller and the shared weights as one network, which checkpoints hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sn_imagenet.models.cell import CellNetwork


class SearchNetwork(nn.Module):
    """A policy and the weights that all its architectures share.

    Buffers: ``baseline`` [], the moving average of rewards; ``champion`` int64 [decisions], the
    architecture with the highest reward of an epoch, and ``champion_record`` [2], that epoch (-1:
    none yet) and the reward.
    """

    def __init__(self, policy: nn.Module, child: CellNetwork) -> None:
        super().__init__()
        self.policy = policy
        self.child = child
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("champion", torch.zeros(8 * child.blocks, dtype=torch.int64))
        self.register_buffer("champion_record", torch.tensor([-1.0, 0.0]))
        self.baseline: Tensor
        self.champion: Tensor
        self.champion_record: Tensor

    def forward(self, part: str, *inputs: Any) -> Any:
        """``policy``, count: sampled architectures. ``child``, images, decisions: logits.
        ``champion``: the champion's decisions [1, D], or [0, D] before the first."""
        if part == "champion":
            return self.champion.expand(int(self.champion_record[0] >= 0), -1)
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
        reward, best = rewards.to(self.baseline).max(0)
        is_better = (self.champion_record[0] != epoch) | (reward > self.champion_record[1])
        record = torch.stack([torch.full_like(reward, epoch), reward])
        self.champion.copy_(torch.where(is_better, decisions[best], self.champion))
        self.champion_record.copy_(torch.where(is_better, record, self.champion_record))
