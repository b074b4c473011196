"""The processes of a run: their ranks, their process group, and its failures."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from sn_imagenet.errors import UserError


def rank() -> int:
    """This process's rank as torchrun set it; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


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
