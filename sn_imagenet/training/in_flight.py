"""Steps that the device may not have finished: what the host reads of them, and when.

If the host waited for each loss, the device would idle while the host prepares the next step. So
the host handles the outcome of a step after launching ``IN_FLIGHT`` more. All ranks handle it at
the same step, even if one of them has read it earlier.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

IN_FLIGHT = {"cpu": 0, "cuda": 1}
"""Steps launched after a step before its outcome is handled, by device type. The CPU has finished a
step when the call that launches it returns."""


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

    @property
    def is_finite(self) -> bool:
        """Whether the loss is finite; if not, no weight has changed since this step."""
        return math.isfinite(self.loss)


class LossNotFiniteError(Exception):
    """Training cannot continue; ``outcome`` is that of the first step with a non-finite loss."""

    def __init__(self, outcome: StepOutcome) -> None:
        super().__init__(f"the loss is {outcome.loss}")
        self.outcome = outcome


class LaunchedStep:
    """A step whose sums over the global batch are being copied to the host.

    Args:
        totals: float64 on the device: sum of losses, the task's sums, flags.
        names: of the task's sums.
        samples: number of samples in the global batch.
    """

    def __init__(self, step: int, totals: Tensor, names: Sequence[str], samples: int) -> None:
        self._step, self._names, self._samples = step, names, samples
        self._totals = totals
        self._copied: torch.cuda.Event | None = None
        if totals.is_cuda:
            # Wait for this step only: reading ``totals`` directly would wait for all later steps.
            self._totals = torch.empty_like(totals, device="cpu", pin_memory=True)
            self._totals.copy_(totals, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._outcome: StepOutcome | None = None

    def read(self) -> StepOutcome:
        """The outcome; waits until the device has finished the step."""
        if self._outcome is None:
            if self._copied is not None:
                self._copied.synchronize()
            loss_sum, *others = self._totals.tolist()
            count = len(self._names)
            sums = dict(zip(self._names, others[:count], strict=True))
            loss = loss_sum / self._samples
            self._outcome = StepOutcome(
                self._step, loss, sums, self._samples, tuple(others[count:])
            )
        return self._outcome


class StepsInFlight:
    """Queue of launched steps whose outcomes have not been handled, oldest first.

    Args:
        device: its type determines how many steps stay in the queue, :data:`IN_FLIGHT`.
        record: called once for each step with a finite loss, in order, when it is first read.
    """

    def __init__(self, device: torch.device, record: Callable[[StepOutcome], None]) -> None:
        self._depth = IN_FLIGHT[device.type]
        self._record = record
        self._steps: deque[LaunchedStep] = deque()
        self._recorded = 0  # number of steps in the queue that are already recorded

    def add(self, step: LaunchedStep) -> None:
        """Append the newest step."""
        self._steps.append(step)

    def pop_due(self) -> tuple[bool, bool]:
        """Remove the steps to be handled now; for each of the two flags, whether any rank set it.

        Raises:
            LossNotFiniteError: the loss of one of these steps is not finite.
        """
        return self._pop(self._depth)

    def pop_all(self) -> tuple[bool, bool]:
        """Wait for all steps in the queue and remove them; otherwise as :meth:`pop_due`."""
        return self._pop(0)

    def read_all(self) -> bool:
        """Record all steps but keep them in the queue; whether all losses are finite."""
        outcomes = [step.read() for step in self._steps]
        for outcome in outcomes[self._recorded :]:
            if not outcome.is_finite:
                return False
            self._record(outcome)
            self._recorded += 1
        return True

    def clear(self) -> None:
        """Drop the steps after a non-finite loss, which have changed no weight."""
        self._steps.clear()
        self._recorded = 0

    def _pop(self, remaining: int) -> tuple[bool, bool]:
        flags = False, False
        while len(self._steps) > remaining:
            outcome = self._steps.popleft().read()
            if not outcome.is_finite:
                raise LossNotFiniteError(outcome)
            if self._recorded:
                self._recorded -= 1
            else:
                self._record(outcome)
            first, second = outcome.flags
            flags = flags[0] or first > 0, flags[1] or second > 0
        return flags


class BufferSnapshots:
    """Copies of a network's buffers at the last steps, made without waiting for the device.

    Args:
        steps: number of steps to keep copies of.
    """

    def __init__(self, network: nn.Module, steps: int) -> None:
        by_dtype: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for buffer in network.buffers():
            by_dtype[buffer.dtype].append(buffer)  # the fast path of foreach needs one dtype
        self._groups = list(by_dtype.values())
        self._copies = [
            [[torch.empty_like(buffer) for buffer in group] for group in self._groups]
            for _ in range(steps)
        ]

    def take(self, step: int) -> None:
        """Copy the buffers as they are before the forward pass of ``step``."""
        for copies, group in zip(self._copies[step % len(self._copies)], self._groups, strict=True):
            torch._foreach_copy_(copies, group)

    def restore(self, step: int) -> None:
        """Restore the buffers that :meth:`take` copied for ``step``."""
        for copies, group in zip(self._copies[step % len(self._copies)], self._groups, strict=True):
            torch._foreach_copy_(group, copies)
