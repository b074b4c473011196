"""Interrupts: a run stops early after a signal to it or to another of its processes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from sn_imagenet.data.workers import SIGNALS
from sn_imagenet.distributed import LostPeerError, rank, report_lost_peers, world_size

EXIT_CODE = os.EX_TEMPFAIL  # 75: no error; the same command resumes the run


class Interrupted(SystemExit):
    """A signal stopped the run; the program, and a sweep in it, exits with :data:`EXIT_CODE`.

    ``reported``: whether this has been printed.
    """

    def __init__(self, reported: bool = False) -> None:
        super().__init__(EXIT_CODE)
        self.reported = reported


class SignalHandler:
    """Handles :data:`SIGNALS` within a ``with`` block, except those ignored at start, as by nohup.

    Where no step can be lost (while data are read or an epoch is validated), a signal raises
    :class:`Interrupted` at once. Within :meth:`deferred` it only sets :attr:`received`, because all
    ranks must first agree on the step. Later signals do not raise: torchrun repeats signals that
    its processes have already received, and these must not interrupt the shutdown.
    """

    def __init__(self) -> None:
        self.received = False
        self._number: int = signal.SIGTERM  # of the last signal
        self._raised = False
        self._deferring = False
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._previous_hook = sys.unraisablehook

    def __enter__(self) -> SignalHandler:
        # Python runs signal handlers only in the main thread.
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {
                number: signal.signal(number, self._on_signal)
                for number in SIGNALS
                if signal.getsignal(number) is not signal.SIG_IGN
            }
            self._previous_hook = sys.unraisablehook
            sys.unraisablehook = self._on_unraisable
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # When one rank ends, torchrun signals the others. They are already shutting down, and must
        # still print the reason and exit with their own code.
        shutting_down = kind in (Interrupted, LostPeerError) and world_size() > 1
        for number, handler in self._previous_handlers.items():
            signal.signal(number, signal.SIG_IGN if shutting_down else handler)
        if self._previous_handlers:
            sys.unraisablehook = self._previous_hook

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within this context, signals only set :attr:`received`.

        Raises:
            Interrupted: at the end, if a signal arrived and the ranks have not agreed on a step.
        """
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.received:
            self._interrupt()

    def _interrupt(self) -> None:
        if not self._raised:
            self._raised = True
            if dist.is_initialized():
                # Tell the ranks that wait for this one in a collective why it is about to fail.
                with suppress(RuntimeError):  # the store and its process are gone
                    _get_default_store().set(_INTERRUPTED, "1")
            raise Interrupted

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        self._number = number
        if not self._deferring:
            self._interrupt()

    def _on_unraisable(self, unraisable: Any) -> None:
        """Send the signal again if Python dropped :class:`Interrupted`, as it drops exceptions in
        finalizers and weak-reference callbacks.
        """
        if not isinstance(unraisable.exc_value, Interrupted):
            self._previous_hook(unraisable)
            return
        self._raised = False
        resend = threading.Timer(_RESEND_DELAY_S, os.kill, (os.getpid(), self._number))
        resend.daemon = True
        resend.start()


_RESEND_DELAY_S = 0.05
# Keys in the store of the process group.
_INTERRUPTED, _PRINTED = "sn_imagenet/interrupted", "sn_imagenet/printed"


def print_once(message: str) -> None:
    """Print once across ranks. The first rank to arrive prints, because the others may be dead."""
    first = rank() == 0
    if dist.is_initialized():
        with suppress(RuntimeError):  # the store and torchrun are gone
            first = _get_default_store().add(_PRINTED, 1) == 1
    if first:
        print(message, flush=True)


@contextmanager
def raise_peer_interrupts() -> Iterator[None]:
    """Distinguish a process that was interrupted from one that was lost.

    Raises:
        Interrupted: another process was interrupted, so this one stops too.
        LostPeerError: another process ended while this one was waiting for it.
    """
    try:
        with report_lost_peers():
            yield
    except LostPeerError as error:
        with suppress(RuntimeError):
            if _get_default_store().check([_INTERRUPTED]):
                raise Interrupted from error
        raise
