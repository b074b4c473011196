"""How far an evaluation or a calibration is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Protocol, TypeVar

from tqdm import tqdm

from sn_imagenet.distributed import print_rank0, rank

T = TypeVar("T", covariant=True)
EVERY_S = 30.0
LAYOUT = "{desc} {percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}, ETA {remaining}]"


class Batches(Protocol[T]):
    """What :func:`progress_bar` goes through; ``len()`` is the number of batches."""

    def __iter__(self) -> Iterator[T]: ...

    def __len__(self) -> int: ...


def progress_bar(batches: Batches[T], what: str, every_s: float = EVERY_S) -> Iterator[T]:
    """The batches of this rank; rank 0 tells how many are done, and about when all will be.

    Args:
        what: the name of the work.
        every_s: seconds between two lines where stderr is no terminal.
    """
    if rank() != 0:
        yield from batches
        return
    if sys.stderr.isatty():
        yield from tqdm(batches, desc=what, bar_format=LAYOUT, dynamic_ncols=True, leave=False)
        return
    total = len(batches)
    start = said = time.monotonic()
    for done, batch in enumerate(batches):
        now = time.monotonic()
        if done and now - said >= every_s:
            said = now
            left = tqdm.format_interval((now - start) / done * (total - done))
            print_rank0(f"{what}  batch {done}/{total}  ETA {left}")
        yield batch
