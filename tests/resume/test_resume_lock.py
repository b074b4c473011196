"""The lock of a run directory: killed processes, containers, other hosts, clocks that jump."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from run_processes import finish, let_read, start, start_reading, wait_until

from sn_imagenet.runs import RunInUseError
from sn_imagenet.runs.lock import HEARTBEAT_S, STALE_S, is_held, locked

HOLDER = """
import os, sys, time
from pathlib import Path
from sn_imagenet.runs.lock import locked
lock = locked(Path(sys.argv[1]))
lock.__enter__()
if os.fork() == 0:  # like a loader worker that outlives the run
    time.sleep(60)
print("holds", flush=True)
input()
"""


@contextmanager
def holder(lock: Path, *before: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock; ``before``: a command that runs its command."""
    process = subprocess.Popen(
        [*before, sys.executable, "-c", HOLDER, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "holds\n"
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_process_holds_the_lock_until_it_is_killed_whatever_the_clock_says(tmp_path):
    """Also as a zombie, and with a child that outlives it, it has lost the lock."""
    lock = tmp_path / "lock.json"
    with holder(lock) as process:
        for shift in (0, -10 * 365 * 86400, 10 * 365 * 86400):
            os.utime(lock, (time.time() + shift, time.time() + shift))
            in_use = pytest.raises(RunInUseError, match=rf"in use by process {process.pid}")
            with in_use as caught, locked(lock):
                pass
            assert caught.value.exit_code == os.EX_UNAVAILABLE
            assert is_held(lock)
        os.kill(process.pid, signal.SIGSTOP)
        assert is_held(lock)
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not is_held(lock), timeout=60)
        with locked(lock):
            assert is_held(lock)
        assert not lock.exists()


def test_a_container_on_this_machine_holds_it_until_it_is_killed(tmp_path):
    namespace = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"]).returncode:
        pytest.skip("needs permission to create a pid namespace")
    lock = tmp_path / "lock.json"
    with holder(lock, *namespace) as process:
        with pytest.raises(RunInUseError, match="in use by process"), locked(lock):
            pass
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not is_held(lock), timeout=60)


@pytest.mark.parametrize("flock", ["of each host", "missing"])
def test_without_a_kernel_lock_a_process_holds_it_while_its_heart_beats(
    tmp_path, monkeypatch, flock
):
    lock = tmp_path / "lock.json"
    host = "another-host.invalid" if flock == "of each host" else socket.gethostname()
    lock.write_text(json.dumps({"host": host, "pid": 1, "started": "then"}))
    if flock == "missing":

        def refuse(file, kind):
            raise OSError(errno.ENOSYS, "no locks")

        monkeypatch.setattr(fcntl, "flock", refuse)
    assert is_held(lock)
    with pytest.raises(RunInUseError, match=f"in use by process 1 on {host}"), locked(lock):
        pass
    silent = time.time() - STALE_S - 1
    os.utime(lock, (silent, silent))
    assert not is_held(lock)
    with locked(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert STALE_S > 10 * HEARTBEAT_S


def test_only_one_of_many_processes_takes_a_stale_lock(tmp_path):
    """Four processes at once on a stale lock, 25 times."""
    program = (
        "import sys, time, pathlib\n"
        "from sn_imagenet.runs.lock import RunInUseError, locked\n"
        "held = []\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        "        held.append(locked(pathlib.Path(line.strip())))\n"
        "        held[-1].__enter__()\n"
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
