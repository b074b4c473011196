"""The processes of one experiment: made under torchrun, always destroyed, one voice."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sn_imagenet.config import ConfigError, UserError


def rank() -> int:
    """This process's rank as torchrun set it; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def say(message: str) -> None:
    """Print a line, on rank 0 only."""
    if rank() == 0:
        print(message, flush=True)


@contextmanager
def session() -> Iterator[None]:
    """The life of the program: whatever happens, the process group is destroyed on the way out."""
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def join(timeout: timedelta = timedelta(minutes=30)) -> None:
    """Make the process group, once per program, if torchrun started several processes.

    Collectives run over gloo for CPU tensors and, where there is CUDA, over nccl for CUDA tensors.
    """
    if world_size() > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timeout)


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
def together() -> Iterator[None]:
    """Every rank leaves the block well, or all raise the first rank's error.

    Raises:
        UserError: on all ranks, if the block raised one on any.
    """
    error: UserError | None = None
    try:
        yield
    except UserError as raised:
        error = raised
    if dist.is_initialized():
        messages: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(messages, None if error is None else str(error))
        first = next((message for message in messages if message is not None), None)
        if first is not None:
            raise (UserError(first) if error is None or str(error) != first else error)
    elif error is not None:
        raise error


def from_rank_0(value: Any) -> Any:
    """Rank 0's ``value``, on every rank (any object that pickles)."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def sum_over_ranks(values: Tensor) -> Tensor:
    """The elementwise sum of a tensor over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def barrier() -> None:
    """Wait until all ranks are here."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def only_rank_0_on_stderr() -> Iterator[None]:
    """Silence the other ranks' stderr, for what all ranks would say alike."""
    if rank() == 0:
        yield
        return
    original = sys.stderr
    with open(os.devnull, "w") as sink:
        sys.stderr = sink
        try:
            yield
        finally:
            sys.stderr = original
