"""Real gloo process groups, forked from one server that has imported torch and timm."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing as mp

# The server imports this package once per test session. A rank then starts in milliseconds; the
# import itself takes seconds of a core.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["sn_imagenet.training"])


def run_on_ranks(size: int, main: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Run ``main(rank, *arguments)`` on ``size`` ranks of one process group; return its results."""
    folder.mkdir()
    mp.start_processes(
        _rank, (size, main, str(folder), arguments), nprocs=size, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def _rank(rank: int, size: int, main: Callable[..., Any], folder: str, arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=size, timeout=timedelta(seconds=600)
    )
    try:
        torch.save(main(rank, *arguments), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class RankResult:
    """Exit code and output of one rank; ``code`` is None if it still ran after the timeout."""

    code: int | None
    out: str
    err: str


def run_programs(
    size: int, main: Callable[..., Any], folder: Path, *arguments: Any, timeout: float = 600
) -> list[RankResult]:
    """Run ``main(*arguments)`` in ``size`` processes with the environment variables of torchrun."""
    folder.mkdir(exist_ok=True)
    # Open the store here, as torchrun's agent does: a port that is merely chosen may be taken.
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    start = size, store.port, main, str(folder), arguments
    processes = [FORKSERVER.Process(target=_program, args=(rank, *start)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return [
        RankResult(code, (folder / f"{rank}.out").read_text(), (folder / f"{rank}.err").read_text())
        for rank, code in enumerate(codes)
    ]


def _program(
    rank: int, size: int, port: int, main: Callable[..., Any], folder: str, arguments: Any
) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        file = os.open(f"{folder}/{rank}.{name}", os.O_CREAT | os.O_WRONLY)
        os.dup2(file, stream)
    torch.set_num_threads(1)
    if size > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(size),
            MASTER_ADDR="localhost",
            MASTER_PORT=str(port),
            TORCHELASTIC_USE_AGENT_STORE="True",
        )
    main(*arguments)
