"""Loader workers end with their parent. tests/resume tests that they ignore signals of others."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

# Loads with two workers, in which a sample never ends; prints their pids.
LOADING = """
import time
from multiprocessing import active_children
from torch.utils.data import Dataset
from sn_imagenet.data.loaders import train_loader

class Stuck(Dataset):
    def __len__(self):
        return 40
    def finisher(self, device, dtype):
        return lambda batch: batch
    def __getitems__(self, keys):
        time.sleep(10_000)

loader = train_loader(Stuck(), global_batch=4, rank=0, world_size=1, seed=0, workers=2)
batches = loader.epoch(0)
print(*(worker.pid for worker in active_children()), flush=True)
next(batches)
"""


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.slow
def test_workers_end_with_their_parent_in_the_middle_of_a_sample() -> None:
    command = [sys.executable, "-W", "ignore", "-c", LOADING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert len(pids) == 2
    deadline = time.monotonic() + 120
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
