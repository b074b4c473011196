"""Real worlds of gloo processes, forked from one server that has imported torch and timm."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing as mp

# The server imports these once for all worlds of a test session; a rank then starts in
# milliseconds, where importing them takes seconds of a core.
multiprocessing.get_context("forkserver").set_forkserver_preload(["sn_imagenet.training"])


def in_world(size: int, main: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """``main(rank, *arguments)`` on ``size`` ranks of one process group; what each returned."""
    folder.mkdir()
    mp.start_processes(
        _rank, (size, main, str(folder), arguments), nprocs=size, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def _rank(rank: int, size: int, main: Callable[..., Any], folder: str, arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=120),
    )
    try:
        torch.save(main(rank, *arguments), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
