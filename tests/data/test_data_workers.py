"""The loader's workers: signals from outside do not end them, the end of their process does."""

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
def loading(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own."""
    process = subprocess.Popen(
        # DataLoader warns where the machine has fewer cores than it has workers.
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


def line_of(process: subprocess.Popen[str]) -> list[str]:
    """A dot, or a loader's name and its workers."""
    assert process.stdout is not None
    words = process.stdout.readline().split()
    if words and words[0] in (".", "train", "eval", "calibration"):
        return words
    process.kill()  # or what it has to say would have no end
    raise AssertionError(f"{words} {process.stdout.read()}")


def lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def ended(pids: list[int]) -> bool:
    deadline = time.monotonic() + 120
    while any(map(lives, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow
def test_signals_from_outside_do_not_end_the_workers_and_their_process_does() -> None:
    """Sent to the whole group, and to each worker, all the while that each loader runs twice."""
    with loading() as process:
        workers, begun = list[int](), list[tuple[str, int]]()
        while len(begun) < 7:
            for number in SIGNALS if begun else ():
                os.killpg(process.pid, number)
                for worker in workers:
                    with suppress(ProcessLookupError):  # those of the calibration end with it
                        os.kill(worker, number)
            name, *pids = line_of(process)
            if name != ".":
                workers = [int(pid) for pid in pids]
                begun.append((name, len(workers)))
        # Its loader ends the calibration's; the others' stay.
        twice = [("eval", 4), ("calibration", 6), ("train", 4)] * 2
        assert begun == [("train", 2), *twice]
        process.kill()
        assert ended(workers)


@pytest.mark.slow
def test_workers_end_with_their_process_in_the_middle_of_a_sample() -> None:
    with loading("stuck") as process:
        _, *workers = line_of(process)
        process.kill()
        assert ended([int(pid) for pid in workers])
