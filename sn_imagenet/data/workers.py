"""Signal handling of data loader workers: only their parent process ends them.

A stop signal often goes to all processes of a run: a terminal signals its foreground group,
``timeout`` and torchrun the group of each rank, Slurm and systemd the whole job. A worker that dies
of such a signal ends the training before it can save a checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Signals that ask a process to stop, and end it if it has no handler.
SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
PARENT_POLL_S = 1.0  # interval of the checks that the parent is alive


@contextmanager
def block_signals() -> Iterator[None]:
    """Block :data:`SIGNALS` within the context, also in processes that are forked in it."""
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def ignore_outside_signals(_worker: int) -> None:
    """A DataLoader's ``worker_init_fn``. A worker that is forked within :func:`block_signals` is
    protected from its start, one that a fork server starts only from this call.

    The worker ends on SIGTERM from its parent, which is how DataLoader ends workers, and within
    :data:`PARENT_POLL_S` seconds of its parent's death, even in the middle of a sample.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_watch_signals_and_parent, name="signals", daemon=True).start()


def _watch_signals_and_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    forked = os.getppid() == parent.pid
    # is_alive() is unreliable in a forked worker: its siblings hold open the pipe that it checks.
    while os.getppid() == parent.pid if forked else parent.is_alive():
        info = signal.sigtimedwait(SIGNALS, PARENT_POLL_S)
        if info is not None and info.si_signo == signal.SIGTERM and info.si_pid == parent.pid:
            break
    os._exit(0)  # there is nothing to clean up, and the main thread may be in a decoder
