"""Steps that the device may still be at: what the host reads of them, and when.

A host that waits for each loss leaves the device idle while it prepares the next step. So the
outcome of a step is acted upon once ``IN_FLIGHT`` more are launched, at the same step on every
rank, whoever has read it sooner.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

IN_FLIGHT = {"cpu": 0, "cuda": 1}
"""Steps launched beyond the one whose outcome is read, by device: the CPU has done each when the
call that launched it returns."""


@dataclass(frozen=True)
class StepOutcome:
    """Of one global batch: the mean loss, and how many of its samples were right at first guess.

    ``step`` counts the optimizer steps before it. ``flags``: the sums over ranks of what each
    passed to :meth:`Stepper.gradients`.
    """

    step: int
    loss: float
    top1_correct: int
    samples: int
    flags: tuple[float, ...] = ()

    @property
    def is_finite(self) -> bool:
        """Whether its loss is; otherwise no weight has moved since."""
        return math.isfinite(self.loss)


class LossNotFiniteError(Exception):
    """The training cannot go on: ``outcome`` is of the first step with such a loss."""

    def __init__(self, outcome: StepOutcome) -> None:
        super().__init__(f"the loss is {outcome.loss}")
        self.outcome = outcome


class LaunchedStep:
    """A step whose sums over the global batch are on their way to the host.

    Args:
        totals: float64 on the device: the sum of losses, the number of correct samples, the flags.
        samples: of the global batch.
    """

    def __init__(self, step: int, totals: Tensor, samples: int) -> None:
        self._step, self._samples = step, samples
        self._totals = totals
        self._arrived: torch.cuda.Event | None = None
        if totals.is_cuda:
            # Behind this step alone: reading the device's own would wait for all later ones.
            self._totals = torch.empty_like(totals, device="cpu", pin_memory=True)
            self._totals.copy_(totals, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        self._outcome: StepOutcome | None = None

    def read(self) -> StepOutcome:
        """Its outcome; waits until the device has done it."""
        if self._outcome is None:
            if self._arrived is not None:
                self._arrived.synchronize()
            loss_sum, correct, *flags = self._totals.tolist()
            loss = loss_sum / self._samples
            self._outcome = StepOutcome(self._step, loss, int(correct), self._samples, tuple(flags))
        return self._outcome


class StepsInFlight:
    """The launched steps that have not been acted upon, oldest first.

    Args:
        device: says how many stay so.
        record: told once of each step with a finite loss, in order, when it is first read.
    """

    def __init__(self, device: torch.device, record: Callable[[StepOutcome], None]) -> None:
        self._depth = IN_FLIGHT[device.type]
        self._record = record
        self._steps: deque[LaunchedStep] = deque()
        self._recorded = 0  # of those in the queue

    def add(self, step: LaunchedStep) -> None:
        """The newest."""
        self._steps.append(step)

    def due(self) -> tuple[bool, bool]:
        """The two flags, each whether a rank has set it, of the steps to be acted upon now.

        Raises:
            LossNotFiniteError: one of them has such a loss.
        """
        return self._take(self._depth)

    def all(self) -> tuple[bool, bool]:
        """Wait for all that are left, to be acted upon now; as :meth:`due`."""
        return self._take(0)

    def read_all(self) -> bool:
        """Read and record them, to be acted upon in their turn; whether all losses are finite."""
        outcomes = [step.read() for step in self._steps]
        for outcome in outcomes[self._recorded :]:
            if not outcome.is_finite:
                return False
            self._record(outcome)
            self._recorded += 1
        return True

    def forget(self) -> None:
        """Those behind a loss that is not finite have changed nothing."""
        self._steps.clear()
        self._recorded = 0

    def _take(self, left: int) -> tuple[bool, bool]:
        flags = False, False
        while len(self._steps) > left:
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
    """Copies of a network's buffers, made without waiting for the device.

    Args:
        steps: how many steps back they reach.
    """

    def __init__(self, network: nn.Module, steps: int) -> None:
        by_dtype: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for buffer in network.buffers():
            by_dtype[buffer.dtype].append(buffer)  # the fast path of foreach takes one dtype
        self._groups = list(by_dtype.values())
        self._copies = [
            [[torch.empty_like(buffer) for buffer in group] for group in self._groups]
            for _ in range(steps)
        ]

    def take(self, step: int) -> None:
        """Copy them as they are before the forward pass of ``step``."""
        for copies, group in zip(self._copies[step % len(self._copies)], self._groups, strict=True):
            torch._foreach_copy_(copies, group)

    def restore(self, step: int) -> None:
        """Put back what :meth:`keep` has kept for ``step``."""
        for copies, group in zip(self._copies[step % len(self._copies)], self._groups, strict=True):
            torch._foreach_copy_(group, copies)
