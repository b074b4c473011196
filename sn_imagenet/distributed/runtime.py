"""The processes of one experiment: made under torchrun, always destroyed, one voice."""

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
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

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


_SEVERITY = (0, RunInUseError.exit_code, UserError.exit_code, 1)


class Session:
    """The life of a program that runs one cell or, under Hydra's multirun, several.

    ``exit_code``: 0 while all went well; else that of the gravest error: 69 after a run directory
    that another process works in, 2 after any other error that the user can mend, 1 after the rest.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self.began = False  # a cell
        self._stderr = sys.stderr
        if rank() > 0:
            # What goes wrong before a cell starts, all ranks would say alike.
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the program ends
            # Nor need they warn of the same machine.
            logging.getLogger("sn_imagenet").setLevel(logging.ERROR)

    def _restore_stderr(self) -> None:
        """Let this rank write to stderr again."""
        sys.stderr = self._stderr

    @contextmanager
    def cell(self) -> Iterator[None]:
        """One cell: its errors are told and remembered, and the next one may follow.

        An error of one rank alone ends the process, since the others are waiting for it in a
        collective and could not go on to the next cell; torchrun then ends them.
        """
        self._restore_stderr()
        self.began = True
        try:
            with report_lost_peers():
                yield
        except UserError as error:
            self._remember(error.exit_code)
            # What all ranks agree on is said once, what one rank met is said by it.
            if rank() == 0 or not getattr(error, "raised_on_all_ranks", False):
                print(f"error: {error}", file=sys.stderr, flush=True)
            if world_size() > 1 and not getattr(error, "raised_on_all_ranks", False):
                raise SystemExit(error.exit_code) from error
        except Exception:
            self._remember(1)
            traceback.print_exc()
            if world_size() > 1:
                raise SystemExit(1) from None

    def _remember(self, code: int) -> None:
        self.exit_code = max(self.exit_code, code, key=_SEVERITY.index)


class LostPeerError(UserError):
    """Another process of the run has ended without a word, or has told its own error."""


# What gloo says when a peer is gone; nccl raises a DistError.
_PEER_GONE = re.compile(
    r"Connection (closed|reset|refused)|pair closure|Broken pipe|peer", re.IGNORECASE
)


@contextmanager
def report_lost_peers() -> Iterator[None]:
    """Turn the failure of a collective, or of making the process group, into one clear error.

    Raises:
        LostPeerError: another process ended while this one was waiting for it.
    """
    try:
        yield
    except RuntimeError as error:
        if not dist.is_initialized() and world_size() == 1:
            raise
        if not isinstance(error, dist.DistError) and not _PEER_GONE.search(str(error)):
            raise
        raise LostPeerError(
            f"another process of this run has ended, process {rank()} cannot go on without it "
            f"({str(error).splitlines()[0]}); the same command continues a training from its "
            "last checkpoint, and torchrun --max-restarts=N does so by itself"
        ) from error


@contextmanager
def session() -> Iterator[Session]:
    """Whatever happens, the process group is destroyed on the way out; whoever reads the output may
    go at any time.

    Ranks that end for the same reason end together, each with its own exit code.

    Raises:
        SystemExit: at the end, if a cell went wrong.
    """
    with fail_safe_output():
        current = Session()
        alike = False
        try:
            yield current
            alike = current.exit_code > 0  # an error of one rank alone would have ended it already
            _write_exit_code(current.exit_code)
        except SystemExit as end:
            alike = not current.began  # as where Hydra cannot compose
            _write_exit_code(end.code)
            raise
        finally:
            current._restore_stderr()
            if alike and world_size() > 1:
                _wait_for_other_ranks()
            if dist.is_initialized():
                dist.destroy_process_group()
        sys.exit(current.exit_code)


def _write_exit_code(code: object) -> None:
    """Where whoever started this wants it, see :data:`~sn_imagenet.errors.EXIT_CODES`."""
    if EXIT_CODES in os.environ:
        with suppress(OSError):  # it then knows torchrun's code alone
            Path(os.environ[EXIT_CODES], str(rank())).write_text(str(code))


def _wait_for_other_ranks() -> None:
    """Let no rank leave before all are about to, and know of no signal any more.

    torchrun sends SIGTERM to the ranks that are left when one has ended: it would cut off the error
    that one of them is about to tell, and replace its exit code. Through the store and not by a
    collective, since there may be no process group yet; for half a minute at most.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    leaving = [f"sn_imagenet/leaving/{attempt}/{each}" for each in range(world_size())]
    with suppress(RuntimeError):  # a rank that never comes, a store that is gone already
        store, _, _ = next(dist.rendezvous("env://"))
        store.set(leaving[rank()], "")
        store.wait(leaving, timedelta(seconds=30))


def init_distributed(timeout: timedelta = timedelta(minutes=30)) -> None:
    """Make the process group, once per program, if torchrun started several processes.

    Collectives run over gloo for CPU tensors and, where there is CUDA, over nccl for CUDA tensors.
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
    """A name that these processes alone share, in a store that may hold an earlier attempt's keys.

    torchrun keeps its store when it restarts its processes, and a process group that finds in it
    where a process of the last attempt listened waits there in vain (PyTorch issue 135712). So
    each process leaves a fresh name, and rank 0 answers to that name; an answer to a fresh name is
    fresh. Nobody of an earlier attempt is left to answer: torchrun ends all before it restarts any.

    Raises:
        RuntimeError: not all processes came within ``timeout``.
    """
    store.set_timeout(timeout)
    own = uuid.uuid4().hex
    if rank() > 0:
        store.set(f"sn_imagenet/rank{rank()}", own)
        answer = store.get(f"sn_imagenet/answer/{own}").decode()
        store.set(f"sn_imagenet/met/{answer}/{rank()}", own)
        return answer
    deadline = time.monotonic() + timeout.total_seconds()
    for other in range(1, world_size()):
        while not store.check([f"sn_imagenet/met/{own}/{other}"]):
            if time.monotonic() > deadline:
                raise RuntimeError(f"process {other} of {world_size()} did not come in {timeout}")
            if store.check([f"sn_imagenet/rank{other}"]):
                # Perhaps the last attempt's name still: then its own follows.
                name = store.get(f"sn_imagenet/rank{other}").decode()
                store.set(f"sn_imagenet/answer/{name}", own)
            time.sleep(0.01)
    return own


def choose_device(wanted: str) -> torch.device:
    """``auto`` takes CUDA where there is one, with one device per local rank.

    Raises:
        ConfigError: CUDA is wanted and absent, or there are more local ranks than devices.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda: no CUDA device is available; use auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    devices = torch.cuda.device_count()
    if local >= devices:
        raise ConfigError(
            f"process {local} of this machine has no GPU of its own: there are {devices}; "
            f"start at most {devices} processes, or use trainer.device=cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """Every rank leaves the block well, or all raise the first rank's error.

    The block must hold no collective. The error is marked as ``agreed``: all ranks know of it.

    Raises:
        UserError: on all ranks, if the block raised one on any.
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


def broadcast_object(value: Any) -> Any:
    """Rank 0's ``value``, on every rank (any object that pickles)."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_reduce_sum(values: Tensor) -> Tensor:
    """The elementwise sum of a tensor over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def to_device(batch: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch's images, as channels_last, and labels on ``device``."""
    images, labels = batch
    return (
        images.to(device, non_blocking=True, memory_format=torch.channels_last),
        labels.to(device, non_blocking=True),
    )
