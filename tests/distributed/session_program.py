"""A program of two cells for test_runtime.py: ``session_program.py CASE``."""

from __future__ import annotations

import atexit
import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from sn_imagenet.distributed import (
    all_reduce_sum,
    broadcast_object,
    init_distributed,
    print_rank0,
    raise_on_all_ranks,
    rank,
    session,
)
from sn_imagenet.errors import UserError


def fail_alone(error: Exception) -> None:
    """Rank 1 fails while rank 0 waits for it."""
    if rank() == 1:
        raise error
    dist.barrier()


def fail_in_block(message_of: dict[int, str]) -> None:
    with raise_on_all_ranks():
        if rank() in message_of:
            raise UserError(message_of[rank()])


CASES = {
    "user error on one": lambda: fail_alone(UserError("met by one rank")),
    "crash on one": lambda: fail_alone(KeyError("crash of one rank")),
    "agreed, of one": lambda: fail_in_block({1: "met in the block"}),
    "agreed, of all": lambda: fail_in_block({0: "met in the block", 1: "met in the block"}),
    "agreed, of each its own": lambda: fail_in_block({0: "met in the block", 1: "another"}),
    "well": lambda: print_rank0(f"rank 0's value is {broadcast_object(('a', rank()))}"),
}


def main(case: str) -> None:
    try:
        with session() as current:
            with current.run():
                init_distributed()
                CASES[case]()
            with current.run():
                dist.barrier()
                print_rank0("the next cell ran")
    finally:
        print(f"group exists: {dist.is_initialized()}", flush=True)


def slowly() -> None:
    """All refuse the same before they meet; rank 0 says it late, rank 1 takes its time to end."""
    with session() as current, current.run():
        if rank() == 0:
            time.sleep(2)
        else:
            atexit.register(time.sleep, 2)
        with raise_on_all_ranks():
            raise UserError("met by all")


def attempt(store_port: int, rank_1_comes_late: bool) -> None:
    """A torchrun attempt: its agent keeps the store, and the processes end without a goodbye."""
    os.environ["MASTER_PORT"] = str(store_port)
    if rank_1_comes_late and rank() == 1:
        time.sleep(12)  # longer than gloo tries to reach the address that it found
    init_distributed(timedelta(seconds=300))
    print(all_reduce_sum(torch.tensor(rank() + 1)).item(), flush=True)
    os._exit(0)


def alone(store_port: int) -> None:
    """An attempt whose other process never comes."""
    os.environ["MASTER_PORT"] = str(store_port)
    if rank() == 0:
        init_distributed(timedelta(seconds=1))


def before_the_first_cell() -> None:
    """As Hydra does where it cannot compose: every rank says the same and exits."""
    with session():
        print("no such option", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    slowly() if sys.argv[1] == "slowly" else main(sys.argv[1])
