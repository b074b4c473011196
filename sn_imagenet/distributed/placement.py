"""Where a setting's replicas live: design idea 2.

A setting (#GPUs, samples per GPU) has G replicas, the paper's GPUs, of n samples that share their
statistics. Sample i of a global batch belongs to replica i mod G, and rank r holds the samples
i with i mod W = r, exactly as torch's DistributedSampler deals them to G ranks. So W ranks hold
whole replicas when W divides G, and a replica spans W / G ranks when G divides W.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sn_imagenet.errors import ConfigError
from sn_imagenet.norms import norm_layers, set_replicas


@dataclass(frozen=True)
class Microbatch:
    """The part of a rank's batch that goes through the network in one forward pass.

    ``images`` [m, C, H, W] and ``labels`` [m] with sample j in the pass's replica j mod
    ``replicas``; ``positions`` [m]: each sample's place in the global batch; ``last``: whether
    the gradients are complete after it.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor
    replicas: int
    holds_first_replica: bool
    last: bool


@dataclass(frozen=True)
class Placement:
    """One rank's share of a setting.

    Args:
        gpus: G, the setting's replicas.
        samples_per_gpu: n, samples that share their statistics.
        world_size: W, ranks that there are.
        rank: this one.
        replicas_per_pass: replicas in one forward pass; None for all of the rank's.

    Raises:
        ConfigError: W neither divides G nor is a multiple of G that splits n evenly, or
            ``replicas_per_pass`` does not divide the rank's replicas.
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
                f"{self.samples_per_gpu}): start it with one of {sizes} "
                f"(torchrun --nproc_per_node N, or nodes times N)"
            )
        if self.replicas_per_rank % self._per_pass:
            raise ConfigError(
                f"trainer.replicas_per_pass={self.replicas_per_pass}: expected a divisor of the "
                f"{self.replicas_per_rank} replicas that each process hosts"
            )

    @property
    def replicas_per_rank(self) -> int:
        """Whole replicas that this rank hosts; 1 where a replica spans ranks."""
        return max(1, self.gpus // self.world_size)

    @property
    def ranks_per_replica(self) -> int:
        return max(1, self.world_size // self.gpus)

    @property
    def samples_per_rank(self) -> int:
        return self.gpus * self.samples_per_gpu // self.world_size

    @property
    def microbatches_per_step(self) -> int:
        """Forward passes of a rank in one step."""
        return self.replicas_per_rank // self._per_pass

    @property
    def _per_pass(self) -> int:
        return self.replicas_per_pass or self.replicas_per_rank

    def microbatches(self, images: Tensor, labels: Tensor) -> Iterator[Microbatch]:
        """Deal a rank's batch [samples_per_rank, ...] to forward passes.

        The first replica's pass comes last: until it moves the running statistics, all passes of a
        step see the same ones.
        """
        hosted, per_pass = self.replicas_per_rank, self._per_pass
        positions = torch.arange(self.samples_per_rank) * self.world_size + self.rank
        for first in reversed(range(0, hosted, per_pass)):

            def part(table: Tensor, first: int = first) -> Tensor:
                if per_pass == hosted:
                    return table
                by_replica = table.unflatten(0, (-1, hosted))
                return by_replica[:, first : first + per_pass].flatten(0, 1)

            yield Microbatch(
                images=part(images),
                labels=part(labels),
                positions=part(positions),
                replicas=per_pass,
                holds_first_replica=self.rank == 0 and first == 0,
                last=first == 0,
            )

    def replica_group(self) -> dist.ProcessGroup | None:
        """The ranks that this rank's replica spans; None for this rank alone.

        Collective: every rank of the world calls it, once.
        """
        if self.ranks_per_replica == 1:
            return None
        mine = None
        for replica in range(self.gpus):
            ranks = list(range(replica, self.world_size, self.gpus))
            group = dist.new_group(ranks)
            if self.rank in ranks:
                mine = group
        assert isinstance(mine, dist.ProcessGroup)
        return mine

    def describe(self) -> str:
        """One line for the log."""
        if self.ranks_per_replica > 1:
            where = f"each spanning {self.ranks_per_replica} processes"
        else:
            passes = self.microbatches_per_step
            where = f"{self.replicas_per_rank} per process in {passes} forward pass" + (
                "es" if passes > 1 else ""
            )
        return (
            f"({self.gpus},{self.samples_per_gpu}): {self.gpus} replicas of "
            f"{self.samples_per_gpu} sample{'s' if self.samples_per_gpu > 1 else ''} on "
            f"{self.world_size} "
            f"process{'es' if self.world_size > 1 else ''}, {where}"
        )


def fitting_world_sizes(gpus: int, samples_per_gpu: int) -> list[int]:
    """The numbers of ranks that can host a setting."""
    whole = {w for w in range(1, gpus + 1) if gpus % w == 0}
    spanning = {gpus * k for k in range(1, samples_per_gpu + 1) if samples_per_gpu % k == 0}
    return sorted(whole | spanning)


def require_one_microbatch(placement: Placement, network: nn.Module) -> None:
    """Whether the network's layers get as many replicas in a forward pass as they need.

    Raises:
        ConfigError: some share statistics over all replicas, and a pass holds fewer.
    """
    shared = {type(m).__name__ for m in norm_layers(network).values() if m.needs_all_replicas}
    if shared and placement.microbatches_per_step > 1:
        raise ConfigError(
            f"trainer.replicas_per_pass={placement.replicas_per_pass}: {', '.join(sorted(shared))} "
            f"needs all {placement.replicas_per_rank} replicas of a process in one forward pass, "
            "whose statistics they share; use trainer.replicas_per_pass=null"
        )


def set_norm_replicas(
    network: nn.Module, part: Microbatch, group: dist.ProcessGroup | None
) -> None:
    """Tell the network's normalization layers how the samples of ``part`` share statistics."""
    set_replicas(
        network,
        part.replicas,
        process_group=group,
        holds_first_replica=part.holds_first_replica,
    )
