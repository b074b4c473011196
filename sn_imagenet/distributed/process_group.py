"""The processes of a run: their ranks, their process group, and its failures."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from threading import Thread

import torch
import torch.distributed as dist

from sn_imagenet.environment import local_rank, local_world_size, rank, world_size
from sn_imagenet.errors import UserError

NOTICE_S = 10.0  # how long to wait for another process before saying so


def init_distributed(timeout: timedelta = timedelta(minutes=30), device: str = "auto") -> None:
    """Create the process group, once per program, if torchrun started several processes.

    Collectives use gloo for CPU tensors and nccl for CUDA tensors. ``device`` is trainer.device.
    """
    if world_size() > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        # nccl then connects at once. Without it, the first collective guesses the device.
        on_gpu = device != "cpu" and torch.cuda.device_count() >= local_world_size()
        store = connect_store(timeout)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(_rendezvous_prefix(store, timeout), store),
            rank=rank(),
            world_size=world_size(),
            timeout=timeout,
            device_id=torch.device("cuda", local_rank()) if on_gpu else None,
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
    own_id = uuid.uuid4().hex
    if rank() > 0:
        answer = f"sn_imagenet/answer/{own_id}"
        store.set(f"sn_imagenet/rank{rank()}", own_id)
        _wait(lambda: store.check([answer]), 0, timeout)
        prefix = store.get(answer).decode()
        store.set(f"sn_imagenet/joined/{prefix}/{rank()}", own_id)
        return prefix

    def joined(other: int) -> bool:
        if store.check([f"sn_imagenet/rank{other}"]):
            # This may still be the id of an earlier attempt; the new id will follow.
            other_id = store.get(f"sn_imagenet/rank{other}").decode()
            store.set(f"sn_imagenet/answer/{other_id}", own_id)
        return store.check([f"sn_imagenet/joined/{own_id}/{other}"])

    for other in range(1, world_size()):
        _wait(partial(joined, other), other, timeout)
    return own_id


def connect_store(timeout: timedelta) -> dist.Store:
    """The store at MASTER_ADDR:MASTER_PORT, which rank 0 serves if torchrun does not.

    dist.rendezvous would wait for all processes in silence, and not handle signals.

    Raises:
        RuntimeError: there is no store within ``timeout``.
        UserError: rank 0 cannot serve one.
    """
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    connect = partial(
        dist.TCPStore,
        *(*address, world_size(), serves, timeout),
        wait_for_workers=False,
        multi_tenant=True,
    )
    # In a thread, because Python handles signals only between the calls of the main thread.
    stores: Future[dist.Store] = Future()

    def run() -> None:
        try:
            stores.set_result(connect())
        except Exception as error:  # raised below
            stores.set_exception(error)

    Thread(target=run, name="rendezvous", daemon=True).start()
    _wait(stores.done, 0, timeout + timedelta(seconds=10))
    try:
        return stores.result()
    except RuntimeError as error:
        if not serves:
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"environment variables MASTER_ADDR={address[0]} MASTER_PORT={address[1]}: cannot "
            f"listen there ({reason}); choose another port, or start the run by torchrun"
        ) from error


def _wait(ready: Callable[[], bool], other: int, timeout: timedelta) -> None:
    """Wait until process ``other`` is ``ready``, at most for ``timeout``, and handle signals."""
    start, told = time.monotonic(), False
    while not ready():
        waited = time.monotonic() - start
        if waited > timeout.total_seconds():
            raise RuntimeError(f"process {other} of {world_size()} did not join in {timeout}")
        if waited > NOTICE_S and not told:
            told = True
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            peer = f"for process {other} of {world_size()} to join"
            what = peer if other != rank() else "to listen"
            print(f"process {rank()} waits {what} at {where} (at most {timeout})", flush=True)
        time.sleep(0.01)


class LostPeerError(UserError):
    """Another process of the run has ended, either silently or after reporting its own error."""

    exit_code = 1  # to start the run again may help


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
