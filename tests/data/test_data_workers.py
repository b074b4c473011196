"""Loader workers ignore signals from other processes, and end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
LOADING = Path(__file__).with_name("loading.py")


@contextmanager
def start_loading(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run loading.py in its own process group."""
    process = subprocess.Popen(
        # DataLoader warns if there are more workers than cores.
        [sys.executable, "-W", "ignore", str(LOADING), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_line(process: subprocess.Popen[str]) -> list[str]:
    """The words of one line: a dot, or the name of a loader and the pids of its workers."""
    assert process.stdout is not None
    words = process.stdout.readline().split()
    if words and words[0] in (".", "train", "eval", "calibration"):
        return words
    process.kill()  # otherwise read() would not return
    raise AssertionError(f"{words} {process.stdout.read()}")


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_until_ended(pids: list[int]) -> bool:
    deadline = time.monotonic() + 120
    while any(map(is_running, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow
def test_workers_survive_signals_from_other_processes_and_end_with_their_parent() -> None:
    """Signals the whole group and each worker while each loader runs twice."""
    with start_loading() as process:
        workers, started = list[int](), list[tuple[str, int]]()
        while len(started) < 7:
            for number in SIGNALS if started else ():
                os.killpg(process.pid, number)
                for worker in workers:
                    with suppress(ProcessLookupError):  # the calibration loader's may have ended
                        os.kill(worker, number)
            name, *pids = read_line(process)
            if name != ".":
                workers = [int(pid) for pid in pids]
                started.append((name, len(workers)))
        # The calibration loader ends its workers; those of the others stay alive.
        twice = [("eval", 4), ("calibration", 6), ("train", 4)] * 2
        assert started == [("train", 2), *twice]
        process.kill()
        assert wait_until_ended(workers)


@pytest.mark.slow
def test_workers_end_with_their_parent_in_the_middle_of_a_sample() -> None:
    with start_loading("stuck") as process:
        _, *workers = read_line(process)
        process.kill()
        assert wait_until_ended([int(pid) for pid in workers])
