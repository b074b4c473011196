"""Two containers on one machine: same hostname and kernel, but separate pid namespaces."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_processes import children, finish, start, steps, wait_until

from sn_imagenet.runs import MetricsFile, RunDirectory, RunInUseError, read_progress
from sn_imagenet.runs.lock import STALE_S, acquire, release

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
HOLDER = """
import sys
from pathlib import Path
from sn_imagenet.runs import MetricsFile, RunDirectory, RunError
from sn_imagenet.runs.lock import acquire, release
directory = RunDirectory(Path(sys.argv[1]))
acquire(directory.lock)
metrics = MetricsFile(directory.metrics)
writes = {
    "metrics": lambda: metrics.write({"by": "holder"}),
    "result": lambda: directory.write_result({"by": "holder"}),
    "release": lambda: release(directory.lock),
}
print("holds", flush=True)
for line in sys.stdin:
    try:
        writes[line.strip()]()
        print("done", flush=True)
    except RunError as error:
        print(type(error).__name__, flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    if not shutil.which("unshare") or subprocess.run([*NAMESPACE, "true"]).returncode:
        pytest.skip("needs permission to create a pid namespace")


Ask = Callable[[str], str]


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[int, Ask]]:
    """A process in another container that has locked the directory: its pid in our namespace, and a
    function that makes it write."""
    process = subprocess.Popen(
        [*NAMESPACE, sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    stdin, stdout = process.stdin, process.stdout
    assert stdout.readline() == "holds\n"

    def ask(command: str) -> str:
        stdin.write(f"{command}\n")
        stdin.flush()
        return stdout.readline().strip()

    yield children(process.pid)[0], ask
    process.kill()
    process.communicate()


def make_stale(lock: Path) -> None:
    silent = time.time() - STALE_S - 1
    os.utime(lock, (silent, silent))


def test_the_heartbeat_decides_for_a_holder_in_another_container(tmp_path, holder):
    directory = RunDirectory(tmp_path)
    pid, ask = holder
    with pytest.raises(RunInUseError, match="in use"):
        acquire(directory.lock)
    assert read_progress(tmp_path).state == "running"
    assert ask("metrics") == "done"
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RunInUseError, match="in use"):
        acquire(directory.lock)
    make_stale(directory.lock)
    acquire(directory.lock)
    release(directory.lock)
    assert list(tmp_path.iterdir()) == [directory.metrics]


def test_a_holder_that_wakes_after_a_takeover_writes_nothing(tmp_path, holder):
    directory = RunDirectory(tmp_path)
    pid, ask = holder
    os.kill(pid, signal.SIGSTOP)
    make_stale(directory.lock)
    acquire(directory.lock)
    metrics = MetricsFile(directory.metrics)
    metrics.write({"by": "successor"})
    os.kill(pid, signal.SIGCONT)
    assert ask("metrics") == ask("result") == "LockLostError"
    assert ask("release") == "done" and directory.lock.exists()
    metrics.write({"by": "successor"})
    metrics.close()
    rows = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    assert rows == [{"by": "successor"}] * 2
    assert not directory.result.exists()
    release(directory.lock)
    assert not directory.lock.exists()


@pytest.mark.slow
def test_of_two_containers_one_trains_and_the_frozen_one_stops(tmp_path, pauses):
    run = tmp_path / "run"
    short = ("trainer.epochs=1", "evaluate=false", "checkpoint.minutes=0", *pauses.OVERRIDES)
    pauses.slow_down()
    first = start(run, *short, before=NAMESPACE)
    wait_until(lambda: len(steps(run)) > 2)
    output, code = finish(start(run, *short))
    assert code == 69 and "is in use by process" in output, output

    frozen = children(first.pid)[0]
    os.kill(frozen, signal.SIGSTOP)
    make_stale(run / "lock.json")
    second = start(run, *short)
    wait_until(lambda: json.loads((run / "lock.json").read_text())["pid"] == second.pid)
    pauses.release()
    os.kill(frozen, signal.SIGCONT)
    output, code = finish(first)
    assert code == 69 and "this process was suspended" in output, output
    output, code = finish(second)
    assert code == 0, output
    assert steps(run) == list(range(1, 22))
    assert json.loads((run / "result.json").read_text())["status"] == "finished"
