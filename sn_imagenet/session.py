"""A program's session: its errors, exit code and output, on one process or several."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from sn_imagenet.distributed import connect_store, rank, report_lost_peers, world_size
from sn_imagenet.errors import UserError, machine_error
from sn_imagenet.output import fail_safe_output
from sn_imagenet.runs import RunInUseError

_SEVERITY = (0, RunInUseError.exit_code, UserError.exit_code, 1)  # exit codes, ascending


class Session:
    """Error handling and exit code of a program with one run or, under Hydra's multirun, several.

    ``exit_code``: 0 if nothing failed, otherwise that of the most severe error. In ascending order:
    69 if another process uses the run directory, 2 for other user errors, 1 for all other errors.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self.run_started = False
        self._printed: set[str] = set()
        self.unreported = ""  # an error that rank 0 should report
        self._stderr = sys.stderr
        if rank() > 0:
            # Before the first run all ranks have the same errors, and the same warnings throughout.
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the program ends
            logging.getLogger("sn_imagenet").setLevel(logging.ERROR)

    @contextmanager
    def run(self) -> Iterator[None]:
        """Report and record the errors of one run, so that the next run can follow.

        An error on one rank alone ends its process: the other ranks are waiting for it in a
        collective and cannot go on to the next run. torchrun then ends them.
        """
        sys.stderr = self._stderr
        self.run_started = True
        try:
            with report_lost_peers():
                yield
        except UserError as error:
            self._record_exit_code(error.exit_code)
            # Rank 0 reports an error that all ranks raise; otherwise the rank that met it does.
            alone = rank() == 0 or not error.raised_on_all_ranks
            if alone and str(error) not in self._printed:  # once, not for each run of a sweep
                self._printed.add(str(error))
                print(f"error: {error}", file=sys.stderr, flush=True)
            if world_size() > 1 and not error.raised_on_all_ranks:
                raise SystemExit(error.exit_code) from error
        except Exception as error:
            self._record_exit_code(1)
            if line := machine_error(error):
                print(f"error: {line}", file=sys.stderr, flush=True)
            else:
                traceback.print_exc()
            if world_size() > 1:
                raise SystemExit(1) from None

    def _record_exit_code(self, code: int) -> None:
        self.exit_code = max(self.exit_code, code, key=_SEVERITY.index)


@contextmanager
def session() -> Iterator[Session]:
    """A session with output that never raises; the process group is always destroyed at the end.

    Ranks that end for the same reason end together, each with its own exit code.

    Raises:
        SystemExit: at the end, if a run failed.
    """
    hook, threading.excepthook = threading.excepthook, _on_thread_error
    with fail_safe_output():
        current = Session()
        same_reason = False
        try:
            yield current
            same_reason = current.exit_code > 0  # an error on one rank alone raised SystemExit
        except SystemExit:
            same_reason = not current.run_started  # for example, Hydra cannot compose the config
            raise
        finally:
            sys.stderr, threading.excepthook = current._stderr, hook
            if same_reason and world_size() > 1:
                _wait_for_other_ranks(current.unreported)
            if dist.is_initialized():
                dist.destroy_process_group()
        sys.exit(current.exit_code)


def _on_thread_error(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread raises its OSError again in the training, which reports it."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def _wait_for_other_ranks(unreported: str) -> None:
    """Wait until all ranks are about to exit, and ignore SIGTERM from now on.

    When one rank has ended, torchrun sends SIGTERM to the others. This could cut off an error
    message and replace an exit code. The ranks wait through the store for at most 30 s, not in a
    collective, because there may be no process group yet.
    If not all arrive, ``unreported`` is printed: rank 0, which should report it, may be missing.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    exiting = [f"sn_imagenet/exiting/{attempt}/{each}" for each in range(world_size())]
    wait = timedelta(seconds=30)
    try:
        store = connect_store(wait)
        store.set(exiting[rank()], "")
        store.wait(exiting, wait)
    except (RuntimeError, UserError):  # a rank never arrives, or the store is gone
        if unreported:
            print(unreported, file=sys.stderr, flush=True)
