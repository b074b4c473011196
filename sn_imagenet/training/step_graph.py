"""Optimizer steps as replays of one CUDA graph (``trainer.graph``).

A step of small batches is hundreds of kernels that run for a shorter time than Python takes to
launch them. A graph launches all of them at once, from the forward pass to the update.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.distributed import Placement
from sn_imagenet.errors import ConfigError
from sn_imagenet.norms import MomentNorm2d
from sn_imagenet.tasks import Task

# Steps before the first capture: cuDNN and the normalization layers choose kernels, NCCL connects.
WARM_UP = 3


def require_graph(
    task: Task,
    config: ExperimentConfig,
    placement: Placement,
    device: torch.device,
    changing: Sequence[MomentNorm2d] = (),
) -> None:
    """Require that a step of this run can be one CUDA graph.

    Args:
        changing: the layers with an ``after_step``.

    Raises:
        ConfigError: it cannot.
    """
    name, passes = config.task["name"], placement.microbatches_per_step
    for obstacle, reason in (
        (device.type != "cuda", f"needs a CUDA device, not {device.type}"),
        (not task.capturable, f"task={name} does not do the same work on the device at each step"),
        (task.uses_global_rng, f"task={name} is seeded by the host at each step"),
        (config.trainer.precision == "fp16", "trainer.precision=fp16 needs the gradient scaler"),
        (config.protocol.dropout, "protocol.dropout draws on the host at each step"),
        (changing, f"norm={config.norm.name} changes its layers by the host's clock at each step"),
        (passes > 1, f"a step takes {passes} forward passes; use trainer.replicas_per_pass=null"),
    ):
        if obstacle:
            raise ConfigError(f"trainer.graph=true: {reason}; or use trainer.graph=false")


def capture(function: Callable[[], object]) -> Callable[[], object]:
    """Record the device's work of ``function`` without doing it; the result does it."""
    graph = torch.cuda.CUDAGraph()
    # Other threads pin memory for the loader, which is no concern of this capture.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph.replay


class StepGraph:
    """Runs a step's device part, first as it is, then as a graph. A graph holds the learning rates,
    so it is captured again when they change.

    The host reads the sums of a step while the device runs the next. It thus learns of a loss that
    is not finite one step late, but the device skips that update and all later ones.

    Args:
        forward_backward: computes gradients from (batch, totals, step) and adds to ``totals``.
        update: updates the weights at a step, with ``optimizers``. Neither waits for the device.
        optimizers: fused ones.
    """

    def __init__(
        self,
        forward_backward: Callable[[Any, Tensor, int], None],
        update: Callable[[int], None],
        optimizers: Iterable[torch.optim.Optimizer],
        device: torch.device,
    ) -> None:
        self._forward_backward, self._update = forward_backward, update
        self._device = device
        # Of the warm-up; one, because the allocator keeps the memory of each stream apart.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._broken = torch.zeros((), device=device)  # 1 after a loss that is not finite
        for optimizer in optimizers:
            optimizer.found_inf = self._broken  # type: ignore[attr-defined]
        self._inputs: Any = None  # what a step reads and adds to, always in the same place
        self._totals: Tensor
        self._replay: Callable[[], object] | None = None
        self._rates: Sequence[float] = ()
        self._steps = 0
        self._unread: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def launch(self, batch: Any, totals: Tensor, step: int, rates: Sequence[float]) -> None:
        """Start optimizer step ``step`` with the learning rates ``rates``.

        Args:
            batch: on the device; of the same size at every step.
            totals: float64, what the sums start from; the first is that of the loss.
        """
        if self._inputs is None:
            self._inputs, self._totals = batch, totals.clone()
        else:
            for place, value in zip(self._inputs, batch, strict=True):
                place.copy_(value)
            self._totals.copy_(totals, non_blocking=True)
        if self._steps < WARM_UP:
            self._warm_up(step)
        else:
            if self._replay is None or rates != self._rates:
                self._replay = None  # frees its memory
                self._replay, self._rates = capture(lambda: self._step(step)), rates
            self._replay()
        self._steps += 1
        on_gpu = self._device.type == "cuda"
        read = torch.empty(totals.shape, dtype=totals.dtype, pin_memory=on_gpu)
        read.copy_(self._totals, non_blocking=True)
        done = torch.cuda.Event() if on_gpu else None
        if done is not None:
            done.record()
        self._unread.append((step, read, done))

    def sums(self, keep: int) -> Iterator[tuple[int, list[float]]]:
        """Each unread step with its ``totals``, but for the last ``keep``; waits for the device."""
        while len(self._unread) > keep:
            step, read, done = self._unread.popleft()
            if done is not None:
                done.synchronize()
            yield step, read.tolist()

    def _warm_up(self, step: int) -> None:
        if self._stream is None:
            self._step(step)
            return
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._step(step)
        current.wait_stream(self._stream)

    def _step(self, step: int) -> None:
        self._forward_backward(self._inputs, self._totals, step)
        broken = (~self._totals[0].isfinite()).float()
        torch.maximum(self._broken, broken, out=self._broken)
        self._update(step)
