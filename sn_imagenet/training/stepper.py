"""One optimizer step of a setting, over a rank's share of a global batch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.seeding import seeded_pass
from sn_imagenet.distributed import (
    Batch,
    Placement,
    all_reduce_sum,
    autocast_for,
    average_tensors,
    broadcast_tensors,
)
from sn_imagenet.norms import MomentNorm2d, norm_layers, set_replicas
from sn_imagenet.tasks import Clock, Optimization, Task
from sn_imagenet.training.step_graph import StepGraph, require_graph

# torch 2.15 renamed the argument; 2.11 has only the old name.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


@dataclass(frozen=True)
class StepOutcome:
    """The mean loss of one global batch, and the sums that the task counts over its samples.

    ``step`` is the number of optimizer steps before it. ``flags`` are the flags of
    :meth:`Stepper.forward_backward`, summed over ranks.
    """

    step: int
    loss: float
    sums: dict[str, float]
    samples: int
    flags: tuple[float, ...] = ()


class Stepper:
    """Runs the training steps of a setting, however its replicas are placed on processes.

    Up to rounding, every placement gives the losses, gradients and weights of one process per GPU
    of the setting under DistributedDataParallel: gradients are averaged over replicas, which all
    have the same number of samples.

    Args:
        task: gives losses and optimizers.
        network: on ``device``, identical on every rank.
        clock: length of the training, for the schedules.
    """

    def __init__(
        self,
        task: Task,
        network: nn.Module,
        config: ExperimentConfig,
        placement: Placement,
        device: torch.device,
        clock: Clock,
    ) -> None:
        self.task = task
        self.network = network
        self.device = device
        self._placement = placement
        self._group = placement.replica_group()
        self._seed = config.seed
        self._global_batch_size = config.batch.total
        # Cached, because finding the layers among all modules at each step is slow.
        layers = list(norm_layers(network).values())
        self._norms = nn.ModuleList(layers)
        self._total_steps = clock.total_steps
        base = MomentNorm2d.after_step
        self._changed_by_steps = [m for m in layers if type(m).after_step is not base]
        self._broadcasts_each_step = any(layer.trains_on_stored_statistics for layer in self._norms)
        self._autocast = autocast_for(config.trainer.precision, device)
        self._ddp: nn.Module = network
        graph = config.trainer.graph
        if graph:
            require_graph(task, config, placement, device, self._changed_by_steps)
            broadcast_tensors([*network.parameters(), *network.buffers()])  # as DDP below does
        elif dist.is_initialized():
            sync_buffers: dict[str, Any] = {_SYNC_BUFFERS: False}
            # DDP must not sync buffers; broadcast_statistics copies rank 0's when they are needed.
            self._ddp = DistributedDataParallel(
                network,
                device_ids=[device.index] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                find_unused_parameters=len(task.phases) > 1,  # a phase may train a part alone
                **sync_buffers,
            )
        self.optimizations = task.optimizations(network, clock)
        for one in self.optimizations.values():
            _create_momentum_buffers(one.optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.trainer.precision == "fp16")

        self._graph: StepGraph | None = None
        if graph:
            optimizers = [each.optimizer for each in self.optimizations.values()]
            self._graph = StepGraph(self._run, self.optimizer_step, optimizers, device)
        self._outcomes: deque[StepOutcome] = deque()

    def step(self, batch: Batch, step: int, flags: Sequence[float] = (), phase: str = "") -> None:
        """One whole optimizer step; its outcome is one of :meth:`outcomes`. There is no update if
        the loss is not finite. The arguments are those of :meth:`forward_backward`.
        """
        if self._graph is None:
            outcome = self.forward_backward(batch, step, flags, phase)
            if math.isfinite(outcome.loss):
                self.optimizer_step(step, phase)
            self._outcomes.append(outcome)
            return
        if not self.network.training:
            self.network.train()
        rates = [each.learning_rate(step) for each in self.optimizations.values()]
        self._graph.launch(batch.to(self.device), self._totals(flags), step, rates)

    def outcomes(self, wait: bool = True) -> Iterator[StepOutcome]:
        """The outcomes of the steps so far, once each. The last may be missing unless ``wait``."""
        while self._outcomes:
            yield self._outcomes.popleft()
        if self._graph is not None:
            for step, sums in self._graph.sums(keep=0 if wait else 1):
                yield self._outcome(step, sums)

    def forward_backward(
        self, batch: Batch, step: int, flags: Sequence[float] = (), phase: str = ""
    ) -> StepOutcome:
        """Forward and backward of this rank's ``batch`` at ``step``; waits for the device.

        DDP averages the gradients over ranks. ``flags`` are summed over ranks together with the
        loss, so that all ranks see a flag of any rank at the same step without a separate
        collective. Each rank passes equally many flags. ``phase`` is the phase of
        the epoch, by default the task's first.
        """
        if not self.network.training:  # train() iterates over all modules
            self.network.train()
        totals = self._totals(flags)
        self._run(batch.to(self.device), totals, step, phase)
        return self._outcome(step, totals.tolist())

    def _totals(self, flags: Sequence[float]) -> Tensor:
        """Zeros for the loss and the task's sums, then the flags; all are summed over ranks."""
        zeros = [0.0] * (1 + len(self.task.sums))
        totals = torch.tensor([*zeros, *flags], dtype=torch.float64)
        if self.device.type == "cuda":
            totals = totals.pin_memory().to(self.device, non_blocking=True)
        return totals

    def _run(self, batch: Batch, totals: Tensor, step: int, phase: str = "") -> None:
        """The device's part of :meth:`forward_backward`: nothing here waits for the device."""
        if self._broadcasts_each_step:
            self.broadcast_statistics()
        self._zero_grad()
        samples = len(batch)
        for microbatch in self._placement.microbatches(batch):
            set_replicas(
                self._norms,
                microbatch.replicas,
                process_group=self._group,
                holds_first_replica=microbatch.holds_first_replica,
            )
            size = len(microbatch.batch)
            key = self._seed, step, microbatch.replica
            seeding = seeded_pass(self.task.replica_by_replica, self.device, "pass", *key)
            with self._gradient_sync(microbatch.last), seeding:
                with self._autocast():
                    losses = self.task.losses(
                        self._ddp, microbatch, step, phase or self.task.phases[0]
                    )
                self.scaler.scale(losses.loss * (size / samples)).backward()
            totals[0] += losses.loss.detach() * size
            for index, name in enumerate(self.task.sums, start=1):
                totals[index] += losses.sums[name]
        if self._graph is not None:
            gradients = (parameter.grad for parameter in self.network.parameters())
            average_tensors(gradient for gradient in gradients if gradient is not None)
        all_reduce_sum(totals)

    def _outcome(self, step: int, totals: Sequence[float]) -> StepOutcome:
        loss_sum, *others = totals
        names, count = self.task.sums, self._global_batch_size
        sums = dict(zip(names, others, strict=False))
        return StepOutcome(step, loss_sum / count, sums, count, tuple(others[len(names) :]))

    def warm_up(self) -> None:
        """Run forward and backward on zeros; weights and running statistics are kept. Collective.

        DistributedDataParallel rebuilds its gradient buckets here, as after any first step. With
        more than two ranks the buckets set the order of summation, so without a warm-up a resumed
        run would differ from an uninterrupted one.
        """
        if self._ddp is self.network:
            return
        buffers = list(self.network.buffers())
        saved = [buffer.clone() for buffer in buffers]
        batch = self.task.warm_up_batch(self._placement.samples_per_rank)
        self.forward_backward(batch, 0)
        self._zero_grad()
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.copy_(value)

    def optimizer_step(self, step: int, phase: str = "") -> None:
        """Update the weights with the accumulated gradients."""
        for optimization in self._optimizations_of(phase):
            optimizer, rate = optimization.optimizer, optimization.learning_rate(step)
            groups = optimizer.param_groups
            for group in groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
            clipped = [(g["params"], g["max_norm"]) for g in groups if g.get("max_norm")]
            if optimization.max_norm is not None:
                clipped.append(([p for g in groups for p in g["params"]], optimization.max_norm))
            if clipped:
                self.scaler.unscale_(optimizer)
            for parameters, max_norm in clipped:
                torch.nn.utils.clip_grad_norm_(parameters, max_norm)
            self.scaler.step(optimizer)
        self.scaler.update()
        for layer in self._changed_by_steps:
            layer.after_step((step + 1) / self._total_steps)
        self.task.after_step(self.network, step)

    def learning_rate(self, step: int, phase: str = "") -> float:
        """The learning rate of the phase's first optimizer at ``step``."""
        return self._optimizations_of(phase)[0].learning_rate(step)

    def weights_are_finite(self) -> bool:
        """Whether every parameter is finite; the result is the same on every rank."""
        finite = [parameter.isfinite().all() for parameter in self.network.parameters()]
        return bool(torch.stack(finite).all())

    def broadcast_statistics(self) -> None:
        """Copy replica 0's running statistics to every rank. Collective."""
        broadcast_tensors(self.network.buffers())

    def state_dict(self) -> dict[str, Any]:
        """Weights, running statistics, optimizer and scaler as plain tensors and dicts."""
        return {
            "model": self.network.state_dict(),
            "optimizers": {n: o.optimizer.state_dict() for n, o in self.optimizations.items()},
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.network.load_state_dict(state["model"])
        optimizers = state.get("optimizers", state)  # older checkpoints have them beside the model
        for name, optimization in self.optimizations.items():
            optimization.optimizer.load_state_dict(optimizers[name])
        self.scaler.load_state_dict(state["scaler"])

    def _optimizations_of(self, phase: str) -> list[Optimization]:
        if len(self.task.phases) == 1:
            return list(self.optimizations.values())
        return [self.optimizations[phase or self.task.phases[0]]]

    def _zero_grad(self) -> None:
        for optimization in self.optimizations.values():
            optimization.optimizer.zero_grad(set_to_none=True)

    def _gradient_sync(self, last: bool) -> Any:
        """A context that makes DDP average gradients over ranks only in the last pass."""
        if isinstance(self._ddp, DistributedDataParallel) and not last:
            return self._ddp.no_sync()
        return nullcontext()


def _create_momentum_buffers(optimizer: torch.optim.Optimizer) -> None:
    """Zero momentum, which fused SGD would create for all parameters of a group at once or, at a
    first step that the scaler skips, leave uninitialized. A step from zero is SGD's first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            state = optimizer.state[parameter]
            state.setdefault("momentum_buffer", torch.zeros_like(parameter, requires_grad=False))
