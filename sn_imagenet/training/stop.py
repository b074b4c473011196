"""How a run ends before its time: told to stop by a signal, or left by another of its processes."""

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

EXIT_CODE = os.EX_TEMPFAIL  # 75: nothing is wrong, the same command continues


class Interrupted(SystemExit):
    """The run was told to stop; the program ends with :data:`EXIT_CODE`, its sweep with it.

    ``said``: whether the user has been told.
    """

    def __init__(self, reported: bool = False) -> None:
        super().__init__(EXIT_CODE)
        self.reported = reported


class SignalHandler:
    """Listens to :data:`SIGNALS` within a ``with`` block, but for those that it was started
    to ignore, as nohup does.

    A signal raises :class:`Interrupted` at once, where no step can be lost (while data are read
    or an epoch is validated), and is only remembered within :meth:`deferred`, where all ranks first
    agree on the step. Only once: torchrun repeats a signal that its processes got already, and the
    way out must not be interrupted.
    """

    def __init__(self) -> None:
        self.received = False
        self._number: int = signal.SIGTERM  # the newest
        self._raised = False
        self._deferring = False
        self._before: dict[signal.Signals, Any] = {}
        self._told_of_swallowed = sys.unraisablehook

    def __enter__(self) -> SignalHandler:
        # Only the main thread may listen, and only it is interrupted.
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._on_signal)
                for number in SIGNALS
                if signal.getsignal(number) is not signal.SIG_IGN
            }
            self._told_of_swallowed = sys.unraisablehook
            sys.unraisablehook = self._on_swallowed
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # torchrun signals the ranks that are left when one ends: they are on their way out already,
        # and are to say why and to end with the code that says so.
        ending = kind in (Interrupted, LostPeerError) and world_size() > 1
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if ending else handler)
        if self._before:
            sys.unraisablehook = self._told_of_swallowed

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, signals are only remembered in :attr:`received`.

        Raises:
            Interrupted: at the end, if one came and the ranks have not agreed on it.
        """
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.received:
            self._stop()

    def _stop(self) -> None:
        if not self._raised:
            self._raised = True
            _tell_peers()
            raise Interrupted

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        self._number = number
        if not self._deferring:
            self._stop()

    def _on_swallowed(self, swallowed: Any) -> None:
        """Python drops what is raised in a finalizer or a weak reference's callback, in which a
        signal may find it: then the signal comes again.
        """
        if not isinstance(swallowed.exc_value, Interrupted):
            self._told_of_swallowed(swallowed)
            return
        self._raised = False
        again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), self._number))
        again.daemon = True
        again.start()


_AGAIN_S = 0.05
_STOPPED, _SAID = "sn_imagenet/stopped", "sn_imagenet/said"  # keys in the process group's store


def _tell_peers() -> None:
    """Leave word for the ranks that wait for this one in a collective, which is about to break."""
    if dist.is_initialized():
        with suppress(RuntimeError):  # the store is gone, and its process with it
            _get_default_store().set(_STOPPED, "1")


def _a_peer_was_stopped() -> bool:
    with suppress(RuntimeError):
        return bool(_get_default_store().check([_STOPPED]))
    return False


def print_once(message: str) -> None:
    """Print a line about ranks that end together, once: whoever comes first, since any other may
    have been killed.
    """
    first = rank() == 0
    if dist.is_initialized():
        with suppress(RuntimeError):  # the store is gone, and torchrun with it
            first = _get_default_store().add(_SAID, 1) == 1
    if first:
        print(message, flush=True)


@contextmanager
def raise_peer_interrupts() -> Iterator[None]:
    """Tell a peer that was told to stop from one that is lost.

    Raises:
        Interrupted: another process was told to stop, and this one with it.
        LostPeerError: another process ended while this one was waiting for it.
    """
    try:
        with report_lost_peers():
            yield
    except LostPeerError as error:
        if _a_peer_was_stopped():
            raise Interrupted from error
        raise
