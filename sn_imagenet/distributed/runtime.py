"""Process-group setup and teardown, error reporting, and logging from rank 0."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sn_imagenet.errors import EXIT_CODES, ConfigError, UserError
from sn_imagenet.output import fail_safe_output
from sn_imagenet.runs import RunInUseError


def rank() -> int:
    """This process's rank as torchrun set it; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def print_rank0(message: str) -> None:
    """Print a line, on rank 0 only."""
    if rank() == 0:
        print(message, flush=True)


_SEVERITY = (0, RunInUseError.exit_code, UserError.exit_code, 1)  # exit codes, ascending


class Session:
    """Error handling and exit code of a program with one run or, under Hydra's multirun, several.

    ``exit_code``: 0 if nothing failed, otherwise that of the most severe error. In ascending order:
    69 if another process uses the run directory, 2 for other user errors, 1 for all other errors.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self.run_started = False
        self._stderr = sys.stderr
        if rank() > 0:
            # Before the first run all ranks have the same errors, and the same warnings throughout.
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the program ends
            logging.getLogger("sn_imagenet").setLevel(logging.ERROR)

    def _restore_stderr(self) -> None:
        """Let this rank write to stderr again."""
        sys.stderr = self._stderr

    @contextmanager
    def run(self) -> Iterator[None]:
        """Report and record the errors of one run, so that the next run can follow.

        An error on one rank alone ends its process: the other ranks are waiting for it in a
        collective and cannot go on to the next run. torchrun then ends them.
        """
        self._restore_stderr()
        self.run_started = True
        try:
            with report_lost_peers():
                yield
        except UserError as error:
            self._record_exit_code(error.exit_code)
            # Rank 0 reports an error that all ranks raise; otherwise the rank that met it does.
            if rank() == 0 or not getattr(error, "raised_on_all_ranks", False):
                print(f"error: {error}", file=sys.stderr, flush=True)
            if world_size() > 1 and not getattr(error, "raised_on_all_ranks", False):
                raise SystemExit(error.exit_code) from error
        except Exception:
            self._record_exit_code(1)
            traceback.print_exc()
            if world_size() > 1:
                raise SystemExit(1) from None

    def _record_exit_code(self, code: int) -> None:
        self.exit_code = max(self.exit_code, code, key=_SEVERITY.index)


class LostPeerError(UserError):
    """Another process of the run has ended, either silently or after reporting its own error."""


# In gloo's error messages when a peer is gone; nccl raises a DistError.
_PEER_GONE = re.compile(
    r"Connection (closed|reset|refused)|pair closure|Broken pipe|peer", re.IGNORECASE
)


@contextmanager
def report_lost_peers() -> Iterator[None]:
    """Turn the failure of a collective or of process-group setup into one clear error.

    Raises:
        LostPeerError: another process ended while this process was waiting for it.
    """
    try:
        yield
    except RuntimeError as error:
        if not dist.is_initialized() and world_size() == 1:
            raise
        if not isinstance(error, dist.DistError) and not _PEER_GONE.search(str(error)):
            raise
        raise LostPeerError(
            f"another process of this run has ended, and process {rank()} cannot continue without "
            f"it ({str(error).splitlines()[0]}). Run the same command to resume training from the "
            "last checkpoint, or let torchrun --max-restarts=N do so automatically"
        ) from error


@contextmanager
def session() -> Iterator[Session]:
    """A session with output that never raises; the process group is always destroyed at the end.

    Ranks that end for the same reason end together, each with its own exit code.

    Raises:
        SystemExit: at the end, if a run failed.
    """
    with fail_safe_output():
        current = Session()
        same_reason = False
        try:
            yield current
            same_reason = current.exit_code > 0  # an error on one rank alone raised SystemExit
            _write_exit_code(current.exit_code)
        except SystemExit as error:
            same_reason = not current.run_started  # for example, Hydra cannot compose the config
            _write_exit_code(error.code)
            raise
        finally:
            current._restore_stderr()
            if same_reason and world_size() > 1:
                _wait_for_other_ranks()
            if dist.is_initialized():
                dist.destroy_process_group()
        sys.exit(current.exit_code)


def _write_exit_code(code: object) -> None:
    """Write this rank's exit code for the launcher, see :data:`~sn_imagenet.errors.EXIT_CODES`."""
    if EXIT_CODES in os.environ:
        with suppress(OSError):  # the launcher then knows only torchrun's exit code
            Path(os.environ[EXIT_CODES], str(rank())).write_text(str(code))


def _wait_for_other_ranks() -> None:
    """Wait until all ranks are about to exit, and ignore SIGTERM from now on.

    When one rank has ended, torchrun sends SIGTERM to the others. This could cut off an error
    message and replace an exit code. The ranks wait through the store for at most 30 s, not in a
    collective, because there may be no process group yet.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    exiting = [f"sn_imagenet/exiting/{attempt}/{each}" for each in range(world_size())]
    with suppress(RuntimeError):  # a rank never arrives, or the store is gone
        store, _, _ = next(dist.rendezvous("env://"))
        store.set(exiting[rank()], "")
        store.wait(exiting, timedelta(seconds=30))


def init_distributed(timeout: timedelta = timedelta(minutes=30)) -> None:
    """Create the process group, once per program, if torchrun started several processes.

    Collectives use gloo for CPU tensors and nccl for CUDA tensors.
    """
    if world_size() > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store, _, _ = next(dist.rendezvous("env://"))
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(_rendezvous_prefix(store, timeout), store),
            rank=rank(),
            world_size=world_size(),
            timeout=timeout,
        )


def _rendezvous_prefix(store: dist.Store, timeout: timedelta) -> str:
    """A key prefix unique to these processes, in a store that may hold keys of an earlier attempt.

    torchrun keeps its store when it restarts its processes. A process group that reads the address
    of a process of the earlier attempt from it waits there in vain (PyTorch issue 135712). So each
    process publishes a new id, and rank 0 answers each id with the prefix. An answer to a new id is
    new, because torchrun ends all processes of an attempt before it restarts any.

    Raises:
        RuntimeError: a process did not join within ``timeout``.
    """
    store.set_timeout(timeout)
    own_id = uuid.uuid4().hex
    if rank() > 0:
        store.set(f"sn_imagenet/rank{rank()}", own_id)
        prefix = store.get(f"sn_imagenet/answer/{own_id}").decode()
        store.set(f"sn_imagenet/joined/{prefix}/{rank()}", own_id)
        return prefix
    deadline = time.monotonic() + timeout.total_seconds()
    for other in range(1, world_size()):
        while not store.check([f"sn_imagenet/joined/{own_id}/{other}"]):
            if time.monotonic() > deadline:
                raise RuntimeError(f"process {other} of {world_size()} did not join in {timeout}")
            if store.check([f"sn_imagenet/rank{other}"]):
                # This may still be the id of an earlier attempt; the new id will follow.
                other_id = store.get(f"sn_imagenet/rank{other}").decode()
                store.set(f"sn_imagenet/answer/{other_id}", own_id)
            time.sleep(0.01)
    return own_id


def choose_device(name: str) -> torch.device:
    """The device of this rank: ``auto`` is CUDA if available, with one device per local rank.

    Raises:
        ConfigError: CUDA is requested but absent, or there are more local ranks than devices.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda: no CUDA device is available; use auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    devices = torch.cuda.device_count()
    if local >= devices:
        raise ConfigError(
            f"process {local} of this machine has no GPU of its own ({devices} available); "
            f"start at most {devices} processes, or use trainer.device=cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """If the block raises a UserError on any rank, raise the error of the lowest such rank on all.

    The block must not contain collectives. The error gets ``raised_on_all_ranks = True``.

    Raises:
        UserError: on all ranks, if the block raised one on any rank.
    """
    error: UserError | None = None
    try:
        yield
    except UserError as raised:
        error = raised
    if dist.is_initialized():
        errors: list[UserError | None] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, error)
        first = next((raised for raised in errors if raised is not None), None)
        if first is not None and (error is None or str(error) != str(first)):
            error = first
    if error is not None:
        error.raised_on_all_ranks = True
        raise error


Value = TypeVar("Value")


@contextmanager
def on_rank0(context: AbstractContextManager[Value]) -> Iterator[Value | None]:
    """Enter ``context`` on rank 0; the other ranks enter nothing and get None. Collective.

    Raises:
        UserError: on all ranks, if it could not be entered.
    """
    with ExitStack() as stack:
        value = None
        with raise_on_all_ranks():
            if rank() == 0:
                value = stack.enter_context(context)
        yield value


def broadcast_object(value: Any) -> Any:
    """Rank 0's ``value`` on every rank; it must be picklable."""
    if not dist.is_initialized():
        return value
    objects = [value]
    dist.broadcast_object_list(objects, src=0)
    return objects[0]


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum a tensor elementwise over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
