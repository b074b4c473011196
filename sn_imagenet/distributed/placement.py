"""Placement of a setting's replicas on ranks (design idea 2).

A setting (#GPUs, samples per GPU) has G replicas, the paper's GPUs, with n samples each that share
statistics. Sample i of a global batch belongs to replica i mod G, and rank r of W ranks holds the
samples i with i mod W = r, as torch's DistributedSampler assigns them to G ranks. So a rank holds
whole replicas if W divides G, and a replica spans W / G ranks if G divides W.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sn_imagenet.config import SettingConfig
from sn_imagenet.errors import ConfigError
from sn_imagenet.norms import norm_layers


class Batch(Protocol):
    """A rank's part of a global batch; ``len()`` is its number of samples."""

    def __len__(self) -> int: ...

    def select(self, indices: Tensor) -> Self:
        """The samples at ``indices`` (int64 [m]), in that order."""

    def to(self, device: torch.device) -> Self:
        """The batch on ``device``."""


B = TypeVar("B", bound=Batch)


@dataclass(frozen=True)
class Microbatch(Generic[B]):
    """The part of a rank's batch that goes through the network in one forward pass.

    ``batch``: m samples; sample j belongs to replica j mod ``replicas`` of this pass.
    ``positions`` [m]: index of each sample in the global batch. ``replica``: index of the first
    replica of this pass in the setting. ``last``: whether the gradients are complete after this
    pass.
    """

    batch: B
    positions: Tensor
    replicas: int
    replica: int
    holds_first_replica: bool
    last: bool


@dataclass(frozen=True)
class Placement:
    """One rank's share of a setting.

    Args:
        gpus: G, the number of replicas.
        samples_per_gpu: n, the number of samples that share statistics.
        world_size: W, the number of ranks.
        rank: this rank.
        replicas_per_pass: replicas in one forward pass; None for all replicas of the rank.

    Raises:
        ConfigError: W neither divides G nor is G times a divisor of n, or
            ``replicas_per_pass`` does not divide the number of replicas of a rank.
    """

    gpus: int
    samples_per_gpu: int
    world_size: int = 1
    rank: int = 0
    replicas_per_pass: int | None = None

    def __post_init__(self) -> None:
        if self.world_size not in fitting_world_sizes(self.gpus, self.samples_per_gpu):
            sizes = ", ".join(map(str, fitting_world_sizes(self.gpus, self.samples_per_gpu)))
            raise ConfigError(
                f"{self.world_size} processes cannot host the setting ({self.gpus},"
                f"{self.samples_per_gpu}): use one of {sizes} "
                f"(torchrun --nproc_per_node N, or nodes times N)"
            )
        if self.replicas_per_rank % self._pass_size:
            raise ConfigError(
                f"trainer.replicas_per_pass={self.replicas_per_pass}: expected a divisor of the "
                f"{self.replicas_per_rank} replicas that each process holds"
            )

    @property
    def replicas_per_rank(self) -> int:
        """Number of whole replicas that this rank holds; 1 if a replica spans ranks."""
        return max(1, self.gpus // self.world_size)

    @property
    def ranks_per_replica(self) -> int:
        return max(1, self.world_size // self.gpus)

    @property
    def samples_per_rank(self) -> int:
        return self.gpus * self.samples_per_gpu // self.world_size

    @property
    def microbatches_per_step(self) -> int:
        """Number of forward passes of a rank in one step."""
        return self.replicas_per_rank // self._pass_size

    @property
    def _pass_size(self) -> int:
        return self.replicas_per_pass or self.replicas_per_rank

    def microbatches(self, batch: B) -> Iterator[Microbatch[B]]:
        """Split a rank's batch [samples_per_rank, ...] into forward passes.

        The pass with the first replica comes last because it updates the running statistics: this
        way all passes of a step see the same running statistics.
        """
        held, per_pass = self.replicas_per_rank, self._pass_size
        by_replica = torch.arange(self.samples_per_rank).view(-1, held)
        for first in reversed(range(0, held, per_pass)):
            indices = by_replica[:, first : first + per_pass].flatten()
            yield Microbatch(
                batch=batch if per_pass == held else batch.select(indices),
                positions=indices * self.world_size + self.rank,
                replicas=per_pass,
                replica=(first * self.world_size + self.rank) % self.gpus,
                holds_first_replica=self.rank == 0 and first == 0,
                last=first == 0,
            )

    def replica_group(self) -> dist.ProcessGroup | None:
        """The ranks that this rank's replica spans; None if it is this rank alone.

        Collective: every rank of the world calls this once.
        """
        if self.ranks_per_replica == 1:
            return None
        replicas = range(self.gpus)
        ranks = [list(range(replica, self.world_size, self.gpus)) for replica in replicas]
        own, _ = dist.new_subgroups_by_enumeration(ranks)
        assert isinstance(own, dist.ProcessGroup)
        return own

    def describe(self) -> str:
        """One line for the log about the setting and its placement."""
        samples = f"{self.samples_per_gpu} sample{'s' if self.samples_per_gpu > 1 else ''}"
        processes = f"{self.world_size} process{'es' if self.world_size > 1 else ''}"
        return (
            f"({self.gpus},{self.samples_per_gpu}): {self.gpus} replicas of {samples} on "
            f"{processes}, forward passes per step: {self.microbatches_per_step}"
        )


def fitting_world_sizes(gpus: int, samples_per_gpu: int) -> list[int]:
    """The numbers of ranks on which a setting can run."""
    whole = {w for w in range(1, gpus + 1) if gpus % w == 0}
    spanning = {gpus * k for k in range(1, samples_per_gpu + 1) if samples_per_gpu % k == 0}
    return sorted(whole | spanning)


def samples_that_share_statistics(network: nn.Module, batch: SettingConfig) -> int:
    """The number of samples that shared statistics in training: those of a replica or, if a layer
    spans all replicas, the global batch. A calibration minibatch has as many.
    """
    spans_replicas = any(layer.needs_all_replicas for layer in norm_layers(network).values())
    return batch.total if spans_replicas else batch.samples_per_gpu


def require_one_microbatch(placement: Placement, network: nn.Module, fixed: bool = False) -> None:
    """Require that a forward pass holds all replicas of layers that share statistics across them.

    Args:
        fixed: whether the task fixes the replicas of a pass.

    Raises:
        ConfigError: such a layer exists, and a pass holds only some of a rank's replicas.
    """
    shared = {type(m).__name__ for m in norm_layers(network).values() if m.needs_all_replicas}
    if shared and placement.microbatches_per_step > 1:
        size, advice = placement.replicas_per_pass, "use trainer.replicas_per_pass=null"
        if fixed:
            advice = (
                f"this task needs {size} in each, so use {placement.gpus} processes, one per "
                "replica, or another norm="
            )
        raise ConfigError(
            f"trainer.replicas_per_pass={size}: {', '.join(sorted(shared))} "
            f"shares statistics across replicas: all {placement.replicas_per_rank} replicas of a "
            f"process must be in one forward pass; {advice}"
        )
