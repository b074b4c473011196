"""The optimizer of the protocol, and its step on this rank's share of the global batch."""

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

# torch 2.15 renamed the argument; 2.11 has only the old name.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


class Stepper:
    """Runs the training steps of a setting, however its replicas are placed on processes.

    Up to rounding, every placement gives the losses, gradients and weights of one process per GPU
    of the setting under DistributedDataParallel: gradients are averaged over replicas, which all
    have the same number of samples. Steps are launched without waiting for the device. After a
    non-finite loss no step changes the weights, even if the host has not read that loss yet.

    Args:
        network: on ``device``, identical on every rank.
        dropout: dropout of the classifier, if the protocol has one.
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
        self._global_batch_size = config.batch.total
        # Cached, because finding the layers among all modules at each step is slow.
        self._norms = nn.ModuleList(norm_layers(network).values())
        self._broadcasts_each_step = any(layer.trains_on_stored_statistics for layer in self._norms)
        self._autocast = autocast_for(config.trainer.precision, device)
        mode = config.trainer.compile
        self._compiled = CompiledBlocks(network, mode) if mode else None
        self._ddp: nn.Module = network
        if dist.is_initialized():
            sync_buffers: dict[str, Any] = {_SYNC_BUFFERS: False}
            # DDP must not sync buffers; broadcast_statistics copies rank 0's when they are needed.
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
        # 1 after the first non-finite loss, otherwise 0; fused SGD skips its step at exactly 1.
        self._found_inf = torch.zeros((), device=device)
        self._snapshots = BufferSnapshots(network, IN_FLIGHT[device.type] + 1)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.trainer.precision == "fp16")

    def forward_backward(
        self, images: Tensor, labels: Tensor, step: int, flags: Sequence[float] = ()
    ) -> LaunchedStep:
        """Forward and backward of this rank's batch [samples_per_rank, ...] at ``step``.

        DDP averages the gradients over ranks. ``flags`` are summed over ranks together with the
        loss, so that all ranks see a flag of any rank at the same step without a separate
        collective. Each rank passes equally many flags.
        """
        if not self.network.training:  # train() iterates over all modules
            self.network.train()
        if self._broadcasts_each_step:
            self.broadcast_statistics()
        self.optimizer.zero_grad(set_to_none=True)
        if self._compiled is not None:
            self._compiled.begin_step()
        self._snapshots.take(step)
        images, labels = to_device((images, labels), self.device)
        # Loss and correct count, summed over passes; then the flags. All are summed over ranks.
        totals = torch.tensor([0.0, 0.0, *flags], dtype=torch.float64)
        if self.device.type == "cuda":
            totals = totals.pin_memory().to(self.device, non_blocking=True)
        for microbatch in self._placement.microbatches(images, labels):
            set_norm_replicas(self._norms, microbatch, self._group)
            if self._dropout is not None:
                self._dropout.set_position(step, microbatch.positions, self._global_batch_size)
            with self._gradient_sync(microbatch.last):
                with self._autocast(), self._compiled.active() if self._compiled else nullcontext():
                    logits = self._ddp(microbatch.images)
                    loss = F.cross_entropy(logits, microbatch.labels)
                share = len(microbatch.labels) / len(labels)
                self.scaler.scale(loss * share).backward()
            totals[0] += loss.detach() * len(microbatch.labels)
            totals[1] += correct_counts(logits.detach(), microbatch.labels)[0]
        all_reduce_sum(totals)
        self._found_inf = torch.maximum(
            self._found_inf, (~totals[0].isfinite()).to(self._found_inf.dtype)
        )
        return LaunchedStep(step, totals, self._global_batch_size)

    def warm_up(self, image_size: int, samples: int) -> None:
        """Run forward and backward on zeros; weights and running statistics are kept. Collective.

        This compiles the blocks and makes DistributedDataParallel rebuild its gradient buckets, as
        after any first step. With more than two ranks the buckets set the order of summation, so
        without a warm-up a resumed run would differ from an uninterrupted one.
        """
        if self._compiled is None and not dist.is_initialized():
            return
        buffers = list(self.network.buffers())
        saved = [buffer.clone() for buffer in buffers]
        images = torch.zeros(samples, 3, image_size, image_size)
        self.forward_backward(images, torch.zeros(samples, dtype=torch.int64), 0)
        self.optimizer.zero_grad(set_to_none=True)
        self._found_inf = torch.zeros_like(self._found_inf)
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.copy_(value)

    def optimizer_step(self, learning_rate: float) -> None:
        """Update the weights with the accumulated gradients, unless a loss was not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.scaler.is_enabled():
            # GradScaler only checks gradients, so pass _found_inf on as a NaN in one of them.
            gradient = next(p.grad for p in self.network.parameters() if p.grad is not None)
            gradient.add_(torch.where(self._found_inf > 0, torch.nan, 0.0))
        else:
            self.optimizer.found_inf = self._found_inf  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def rollback(self, step: int) -> None:
        """Restore the running statistics from before ``step``, whose loss was not finite."""
        self._snapshots.restore(step)

    def weights_are_finite(self) -> bool:
        """Whether every parameter is finite; the result is the same on every rank."""
        finite = [parameter.isfinite().all() for parameter in self.network.parameters()]
        return bool(torch.stack(finite).all())

    def broadcast_statistics(self) -> None:
        """Copy replica 0's running statistics to every rank. Collective."""
        if dist.is_initialized():
            for buffer in self.network.buffers():
                dist.broadcast(buffer, src=0)

    def state_dict(self) -> dict[str, Any]:
        """Weights, running statistics, optimizer and scaler as plain tensors and dicts."""
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
        """Use the fused optimizer even if an older checkpoint says otherwise. Initialize missing
        momentum buffers to 0, because a skipped first step of fused SGD leaves them uninitialized.
        """
        for group in self.optimizer.param_groups:
            group["fused"] = True
            if group["momentum"]:
                for parameter in group["params"]:
                    buffer = torch.zeros_like(parameter, requires_grad=False)
                    self.optimizer.state[parameter].setdefault("momentum_buffer", buffer)

    def _gradient_sync(self, last: bool) -> Any:
        """A context that makes DDP average gradients over ranks only in the last pass."""
        if isinstance(self._ddp, DistributedDataParallel) and not last:
            return self._ddp.no_sync()
        return nullcontext()


def _parameter_groups(network: nn.Module, protocol: ProtocolConfig) -> list[dict[str, Any]]:
    """Parameter groups; SN's lambda has its own if the protocol sets a weight decay for it."""
    decay, lambda_decay = protocol.weight_decay, protocol.lambda_weight_decay
    if lambda_decay is None:
        return [{"params": list(network.parameters()), "weight_decay": decay}]
    layers = [n for n in norm_layers(network).values() if isinstance(n, SwitchNorm2d)]
    lambdas = [p for layer in layers for p in (layer.mean_weight, layer.var_weight)]
    lambda_ids = set(map(id, lambdas))
    others = [p for p in network.parameters() if id(p) not in lambda_ids]
    groups = [
        {"params": others, "weight_decay": decay},
        {"params": lambdas, "weight_decay": lambda_decay},
    ]
    return [group for group in groups if group["params"]]
