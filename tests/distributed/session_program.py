"""A program with two runs for test_runtime.py: ``session_program.py CASE``."""

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
)
from sn_imagenet.errors import UserError
from sn_imagenet.session import session


def fail_alone(error: Exception) -> None:
    """Rank 1 fails while rank 0 waits for it."""
    if rank() == 1:
        raise error
    dist.barrier()


def fail_in_block(messages: dict[int, str]) -> None:
    with raise_on_all_ranks():
        if rank() in messages:
            raise UserError(messages[rank()])


CASES = {
    "user error on one": lambda: fail_alone(UserError("raised by one rank")),
    "crash on one": lambda: fail_alone(KeyError("crash of one rank")),
    "raised on one": lambda: fail_in_block({1: "raised in the block"}),
    "raised on all": lambda: fail_in_block({0: "raised in the block", 1: "raised in the block"}),
    "different on each": lambda: fail_in_block({0: "raised in the block", 1: "another"}),
    "no error": lambda: print_rank0(f"rank 0's value is {broadcast_object(('a', rank()))}"),
}


def main(case: str) -> None:
    try:
        with session() as current:
            with current.run():
                init_distributed()
                CASES[case]()
            with current.run():
                dist.barrier()
                print_rank0("the next run started")
    finally:
        print(f"group exists: {dist.is_initialized()}", flush=True)


def exit_slowly() -> None:
    """All raise the same error before the group exists. Rank 0 raises late, rank 1 exits late."""
    with session() as current, current.run():
        if rank() == 0:
            time.sleep(2)
        else:
            atexit.register(time.sleep, 2)
        with raise_on_all_ranks():
            raise UserError("raised by all")


def attempt(store_port: int, rank_1_is_late: bool) -> None:
    """One torchrun attempt: its agent keeps the store, and the processes exit without cleanup."""
    os.environ["MASTER_PORT"] = str(store_port)
    if rank_1_is_late and rank() == 1:
        time.sleep(12)  # longer than gloo tries to connect to an address
    init_distributed(timedelta(seconds=300))
    print(all_reduce_sum(torch.tensor(rank() + 1)).item(), flush=True)
    os._exit(0)


def wait_alone(store_port: int) -> None:
    """An attempt in which the other process never joins."""
    os.environ["MASTER_PORT"] = str(store_port)
    if rank() == 0:
        init_distributed(timedelta(seconds=1))


def fail_before_the_first_run() -> None:
    """Like Hydra when it cannot compose a config: every rank prints the same and exits."""
    with session():
        print("no such option", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    exit_slowly() if sys.argv[1] == "exit slowly" else main(sys.argv[1])
