"""The optimizer of the protocol, and one step of it over a rank's share of a global batch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sn_imagenet.config import ExperimentConfig, ProtocolConfig
from sn_imagenet.distributed import (
    Placement,
    all_reduce_sum,
    autocast_for,
    set_norm_replicas,
    to_device,
)
from sn_imagenet.evaluation import correct_counts
from sn_imagenet.models import PlacedDropout
from sn_imagenet.norms import SwitchNorm2d, norm_layers
from sn_imagenet.training.compiled import CompiledBlocks
from sn_imagenet.training.in_flight import IN_FLIGHT, BufferSnapshots, LaunchedStep

# torch 2.15 renamed the argument; 2.11 knows the old name only.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


class Stepper:
    """Forward, backward and update of the whole setting, wherever its replicas live.

    Every placement gives the losses, gradients and weights of G processes under
    DistributedDataParallel with n samples each, up to rounding: gradients are averaged over
    replicas, which all have as many samples. Nothing waits for the device: a step is launched, and
    once a loss is not finite no later step moves a weight, whenever the host hears of it.

    Args:
        network: on ``device``, the same on every rank.
        dropout: the classifier's, if the protocol has one.
    """

    def __init__(
        self,
        network: nn.Module,
        config: ExperimentConfig,
        placement: Placement,
        device: torch.device,
        dropout: PlacedDropout | None = None,
    ) -> None:
        self.network = network
        self.device = device
        self._placement = placement
        self._group = placement.replica_group()
        self._dropout = dropout
        self._total = config.batch.total
        # Walked at each step, which takes a while over all modules.
        self._norms = nn.ModuleList(norm_layers(network).values())
        self._shares_each_step = any(layer.trains_on_stored_statistics for layer in self._norms)
        self._autocast = autocast_for(config.trainer.precision, device)
        mode = config.trainer.compile
        self._compiled = CompiledBlocks(network, mode) if mode else None
        self._ddp: nn.Module = network
        if dist.is_initialized():
            sync_buffers: dict[str, Any] = {_SYNC_BUFFERS: False}
            # Buffers follow replica 0, on rank 0, and are sent when they are used, not each step.
            self._ddp = DistributedDataParallel(
                network,
                device_ids=[device.index] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                **sync_buffers,
            )
        self.optimizer = torch.optim.SGD(
            _parameter_groups(network, config.protocol),
            lr=config.initial_lr,
            momentum=config.protocol.momentum,
            fused=True,
        )
        self._prepare_optimizer()
        # 1 from the first loss on that is not finite, else 0: fused SGD skips at exactly 1.
        self._broken = torch.zeros((), device=device)
        self._snapshots = BufferSnapshots(network, IN_FLIGHT[device.type] + 1)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.trainer.precision == "fp16")

    def forward_backward(
        self, images: Tensor, labels: Tensor, step: int, flags: Sequence[float] = ()
    ) -> LaunchedStep:
        """Accumulate the gradients of the rank's batch [samples_per_rank, ...] of ``step``.

        ``flags``: numbers to be summed over ranks on the way, as many on each, so that all ranks
        hear of a flag that one has set at the same step, without a collective of its own.
        """
        if not self.network.training:  # it walks all modules
            self.network.train()
        if self._shares_each_step:
            self.broadcast_statistics()
        self.optimizer.zero_grad(set_to_none=True)
        if self._compiled is not None:
            self._compiled.begin_step()
        self._snapshots.take(step)
        images, labels = to_device((images, labels), self.device)
        # Sum of losses and number of correct samples, over passes and then over ranks; flags.
        totals = torch.tensor([0.0, 0.0, *flags], dtype=torch.float64)
        if self.device.type == "cuda":
            totals = totals.pin_memory().to(self.device, non_blocking=True)
        for part in self._placement.microbatches(images, labels):
            set_norm_replicas(self._norms, part, self._group)
            if self._dropout is not None:
                self._dropout.set_position(step, part.positions, self._total)
            with self._communicating(part.last):
                with self._autocast(), self._compiled.used() if self._compiled else nullcontext():
                    logits = self._ddp(part.images)
                    loss = F.cross_entropy(logits, part.labels)
                share = len(part.labels) / len(labels)
                self.scaler.scale(loss * share).backward()
            totals[0] += loss.detach() * len(part.labels)
            totals[1] += correct_counts(logits.detach(), part.labels)[0]
        all_reduce_sum(totals)
        self._broken = torch.maximum(self._broken, (~totals[0].isfinite()).to(self._broken.dtype))
        return LaunchedStep(step, totals, self._total)

    def warm_up(self, image_size: int, samples: int) -> None:
        """A step on nothing that leaves weights and statistics as they are. Collective.

        The blocks are compiled in it. And DistributedDataParallel sums gradients in other buckets
        from the second step on, and with more than two ranks the order of summation within a bucket
        depends on it: a resumed run must have its first step behind it, as the run that was never
        disturbed has.
        """
        if self._compiled is None and not dist.is_initialized():
            return
        buffers = list(self.network.buffers())
        before = [buffer.clone() for buffer in buffers]
        images = torch.zeros(samples, 3, image_size, image_size)
        self.forward_backward(images, torch.zeros(samples, dtype=torch.int64), 0)
        self.optimizer.zero_grad(set_to_none=True)
        self._broken = torch.zeros_like(self._broken)
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)

    def optimizer_step(self, learning_rate: float) -> None:
        """Move the weights by the accumulated gradients, unless a loss was not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.scaler.is_enabled():
            # It decides by the gradients, and sets the optimizer's found_inf itself.
            gradient = next(p.grad for p in self.network.parameters() if p.grad is not None)
            gradient.add_(torch.where(self._broken > 0, torch.nan, 0.0))
        else:
            self.optimizer.found_inf = self._broken  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def rollback(self, step: int) -> None:
        """Forget what the forward passes of ``step``, whose loss was not finite, and of those after
        it did to the running statistics.
        """
        self._snapshots.restore(step)

    def weights_are_finite(self) -> bool:
        """Whether every parameter is finite; the same on every rank."""
        finite = [parameter.isfinite().all() for parameter in self.network.parameters()]
        return bool(torch.stack(finite).all())

    def broadcast_statistics(self) -> None:
        """Give every rank replica 0's running statistics. Collective."""
        if dist.is_initialized():
            for buffer in self.network.buffers():
                dist.broadcast(buffer, src=0)

    def state_dict(self) -> dict[str, Any]:
        """Weights, running statistics, optimizer and scaler: plain tensors and dicts."""
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._prepare_optimizer()
        self.scaler.load_state_dict(state["scaler"])

    def _prepare_optimizer(self) -> None:
        """Fused, whatever a checkpoint of before says; and a momentum of 0 where there is none yet:
        a fused first step that is skipped would leave memory as it was found.
        """
        for group in self.optimizer.param_groups:
            group["fused"] = True
            if group["momentum"]:
                for parameter in group["params"]:
                    buffer = torch.zeros_like(parameter, requires_grad=False)
                    self.optimizer.state[parameter].setdefault("momentum_buffer", buffer)

    def _communicating(self, last: bool) -> Any:
        if isinstance(self._ddp, DistributedDataParallel) and not last:
            return self._ddp.no_sync()
        return nullcontext()


def _parameter_groups(network: nn.Module, protocol: ProtocolConfig) -> list[dict[str, Any]]:
    """The parameters by their weight decay; lambda with the others unless it has one of its own."""
    decay, of_lambda = protocol.weight_decay, protocol.lambda_weight_decay
    if of_lambda is None:
        return [{"params": list(network.parameters()), "weight_decay": decay}]
    layers = [n for n in norm_layers(network).values() if isinstance(n, SwitchNorm2d)]
    lambdas = [p for layer in layers for p in (layer.mean_weight, layer.var_weight)]
    apart = set(map(id, lambdas))
    others = [p for p in network.parameters() if id(p) not in apart]
    groups = [
        {"params": others, "weight_decay": decay},
        {"params": lambdas, "weight_decay": of_lambda},
    ]
    return [group for group in groups if group["params"]]
