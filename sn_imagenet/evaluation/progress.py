"""Progress of an evaluation or calibration: a bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from sn_imagenet.distributed import print_rank0, rank

EVERY_S = 30.0
LAYOUT = "{desc} {percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}, ETA {remaining}]"


def progress_bar(batches: Any, label: str, every_s: float = EVERY_S) -> Iterator[Any]:
    """Yield the batches of this rank; rank 0 shows how many are done and the remaining time.

    Args:
        batches: with ``len()``, their number.
        label: the name of the task.
        every_s: seconds between two lines if stderr is not a terminal.
    """
    if rank() != 0:
        yield from batches
        return
    if sys.stderr.isatty():
        yield from tqdm(batches, desc=label, bar_format=LAYOUT, dynamic_ncols=True, leave=False)
        return
    total = len(batches)
    start = last_print = time.monotonic()
    for done, batch in enumerate(batches):
        now = time.monotonic()
        if done and now - last_print >= every_s:
            last_print = now
            remaining = tqdm.format_interval((now - start) / done * (total - done))
            print_rank0(f"{label}  batch {done}/{total}  ETA {remaining}")
        yield batch
