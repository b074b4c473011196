"""The lock of a run directory: reused pids, zombies, other hosts, clocks that jump."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_processes import finish, let_read, start, start_reading, wait_until

from sn_imagenet.runs import RunInUseError
from sn_imagenet.runs.lock import HEARTBEAT_S, STALE_S, acquire, release


@pytest.fixture
def sleeper():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def held_by(pid: int, lock: Path, **changes: object) -> None:
    """Write a lock as another process would."""
    acquire(lock)
    holder = json.loads(lock.read_text())
    release(lock)
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    boot = holder["process_start"].split(":")[0]
    overrides = {"pid": pid, "process_start": f"{boot}:{stat[19]}", **changes}
    lock.write_text(json.dumps({**holder, **overrides}))


def test_a_live_process_holds_the_lock_whatever_the_clock_says(tmp_path, sleeper):
    lock = tmp_path / "lock.json"
    held_by(sleeper.pid, lock, started="1999-01-01T00:00:00")
    for shift in (0, -10 * 365 * 86400, 10 * 365 * 86400):
        os.utime(lock, (time.time() + shift, time.time() + shift))
        with pytest.raises(RunInUseError, match=rf"in use by process {sleeper.pid}"):
            acquire(lock)


def test_another_process_with_the_holders_pid_does_not_hold_it(tmp_path, sleeper):
    lock = tmp_path / "lock.json"
    held_by(sleeper.pid, lock, process_start="another-boot:1")
    acquire(lock)
    assert json.loads(lock.read_text())["pid"] == os.getpid()
    release(lock)
    assert not lock.exists()


def test_a_zombie_does_not_hold_it(tmp_path, sleeper):
    lock = tmp_path / "lock.json"
    held_by(sleeper.pid, lock)
    os.kill(sleeper.pid, signal.SIGKILL)
    wait_until(lambda: ") Z " in Path(f"/proc/{sleeper.pid}/stat").read_text())
    acquire(lock)
    release(lock)


def test_a_process_on_another_host_holds_it_while_its_heart_beats(tmp_path):
    lock = tmp_path / "lock.json"
    held_by(os.getpid(), lock, host=f"not-{socket.gethostname()}")
    with pytest.raises(RunInUseError, match="in use"):
        acquire(lock)
    silent = time.time() - STALE_S - 1
    os.utime(lock, (silent, silent))
    acquire(lock)
    release(lock)
    assert STALE_S > 10 * HEARTBEAT_S


def test_a_lock_that_was_taken_over_is_not_released(tmp_path, sleeper):
    lock = tmp_path / "lock.json"
    acquire(lock)
    held = lock.read_text()
    lock.unlink()
    held_by(sleeper.pid, lock)
    release(lock)
    assert lock.exists() and lock.read_text() != held


def test_only_one_of_many_processes_takes_a_stale_lock(tmp_path):
    """Four processes at once on a stale lock, 25 times."""
    program = (
        "import sys, time, pathlib\n"
        "from sn_imagenet.runs.lock import RunInUseError, acquire\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        "        acquire(pathlib.Path(line.strip()))\n"
        "        print('took', flush=True)\n"
        "    except RunInUseError:\n"
        "        print('refused', flush=True)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for trial in range(25):
            folder = tmp_path / str(trial)
            folder.mkdir()
            dead = {"host": socket.gethostname(), "pid": 2**22 + 1, "started": "long ago"}
            (folder / "lock.json").write_text(json.dumps(dead))
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(f"{folder / 'lock.json'}\n")
                process.stdin.flush()
            answers = [process.stdout.readline() for process in processes if process.stdout]
            assert sorted(answers) == ["refused\n"] * 3 + ["took\n"]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_start_that_prepares_while_another_finishes_finds_its_result(tmp_path, seed):
    """Seconds pass between its first check and its lock: a short run may finish in between."""
    short = ("trainer.max_steps=2", "evaluate=false")
    run, folder = tmp_path / "run", tmp_path / "late"
    late = start_reading(run, *short, folder=folder)
    assert not (run / "lock.json").exists()
    output, code = finish(start(run, *short, f"seed={seed}"))
    assert code == 0, output
    result = (run / "result.json").read_bytes()
    let_read(folder)
    output, code = finish(late)
    if seed == 0:
        assert code == 0 and "already finished, nothing to do" in output, output
    else:  # another experiment
        assert code == 2 and "seed: 1 (there) -> 0 (now)" in output, output
    assert (run / "result.json").read_bytes() == result
    assert not (run / "lock.json").exists()
