"""A loader's workers belong to their process alone: it ends them, no signal from elsewhere does.

Whoever stops a run often signals all its processes: a terminal its foreground group, ``timeout``
and torchrun the group of each rank, Slurm and systemd the whole job. A worker that dies of that
takes the training with it before it can save.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# What ends a process that does not listen, and is sent to tell it to stop.
SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
LOOK_S = 1.0  # between two looks whether the parent still lives


@contextmanager
def signals_held() -> Iterator[None]:
    """Within, :data:`SIGNALS` wait, and so they do in every process that is forked there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_the_parent_alone(_worker: int) -> None:
    """A DataLoader's ``worker_init_fn``; no signal is missed where the worker was forked within
    :func:`signals_held`, those until here where a server forked it.

    The worker ends at a SIGTERM of its parent, as DataLoader ends its workers, and within
    :data:`LOOK_S` seconds of its parent's death, whatever it is doing then. SIGKILL ends it as any.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_sift, name="signals", daemon=True).start()


def _sift() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    forked = os.getppid() == parent.pid
    # Of a forked worker's parent is_alive() is no proof: its siblings hold the pipe that it reads.
    while os.getppid() == parent.pid if forked else parent.is_alive():
        got = signal.sigtimedwait(SIGNALS, LOOK_S)
        if got is not None and got.si_signo == signal.SIGTERM and got.si_pid == parent.pid:
            break
    os._exit(0)  # nothing here is to be put in order, and the main thread may be in a decoder
