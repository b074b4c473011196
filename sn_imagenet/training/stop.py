"""How a run ends before its time: told to stop by a signal, or left by another of its processes."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch.distributed as dist

from sn_imagenet.runs import RunError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
EXIT_CODE = os.EX_TEMPFAIL  # 75: nothing is wrong, the same command continues


class Stopped(SystemExit):
    """The run was told to stop; the program ends with :data:`EXIT_CODE`, its sweep with it."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class LostPeerError(RunError):
    """Another process of the run has ended without a word."""


class StopRequests:
    """Listens to :data:`SIGNALS` within a ``with`` block.

    A signal raises :class:`Stopped` at once, where no step can be lost (the data is being read, an
    epoch is being validated), and is only remembered within :meth:`deferred`, where all ranks first
    agree on the step.
    """

    def __init__(self) -> None:
        self.received = False
        self._deferring = False
        self._pid = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequests:
        # Only the main thread may listen, and only it is interrupted.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, signals are only remembered in :attr:`received`."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def heed(self) -> None:
        """Stop now if a signal came meanwhile.

        Raises:
            Stopped: it did.
        """
        if self.received:
            raise Stopped

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a loader's worker, forked from us: it ends when its loader does
        self.received = True
        if not self._deferring:
            raise Stopped


# What gloo says when a peer is gone; nccl raises a DistError.
_GONE = re.compile(
    r"Connection (closed|reset|refused)|pair closure|Broken pipe|peer", re.IGNORECASE
)


@contextmanager
def lost_peers_told() -> Iterator[None]:
    """Turn the failure of a collective into one clear error.

    Raises:
        LostPeerError: another process ended while this one was waiting for it.
    """
    try:
        yield
    except RuntimeError as error:
        if dist.is_initialized() and (
            isinstance(error, dist.DistError) or _GONE.search(str(error))
        ):
            raise LostPeerError(
                f"another process of this run has ended, process {dist.get_rank()} cannot go on "
                f"without it ({str(error).splitlines()[0]}); the same command continues from the "
                "last checkpoint, and torchrun --max-restarts=N does so by itself"
            ) from error
        raise
