"""Runs that are forked from the fork server, compared with separate programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sn_imagenet.sweeps import starters
from sn_imagenet.sweeps.starters import ForkingStarter, Starter

ROOT = Path(__file__).parents[2]
REPORT = """
import atexit, json, multiprocessing, os, signal, sys, torch
import own_code
atexit.register(print, "at exit")
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "name": __name__, "file": __file__, "cwd": os.getcwd(),
    "variable": os.environ["VARIABLE"], "threads": torch.get_num_threads(),
    "leads": os.getsid(0) == os.getpid() == os.getpgid(0),
    "input": [sys.stdin.read(), os.read(0, 9).decode()],
    "handlers": [str(signal.getsignal(n)) for n in sorted(signal.valid_signals())],
    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "code": own_code.VERSION,
    "workers": multiprocessing.get_context().get_start_method(),
}))
exec(sys.argv[-1])
"""
# A pool with one run that saves nothing; folder and script are its arguments.
POOL = """
import sys
from hydra import compose, initialize_config_dir
from sn_imagenet.sweeps.board import Board
from sn_imagenet.sweeps.planned import PlannedRun, plan_runs
from sn_imagenet.sweeps.pool import Pool
from sn_imagenet.sweeps.slots import Slot
from sn_imagenet.sweeps.starters import ForkingStarter
configs, folder, script = sys.argv[1:]
with initialize_config_dir(configs, version_base="1.3"):
    ((run),) = plan_runs([((), compose("config", ["run_dir=" + folder + "/run"]))])
forking = ForkingStarter([script], [], {}, print)
slots = [Slot("slot", {})]
sys.exit(Pool([PlannedRun(run.config, (folder,))], slots, forking, 0, Board()).run())
"""
LASTING = """
import os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def on_signal(number, frame):
    with open(folder / "signals", "a") as file:
        file.write(f"{number}\\n")
    time.sleep(1)
    (folder / "saved").touch()
    if not (folder / "stay").exists():
        sys.exit(75)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, on_signal)
(folder / "part").write_text(f"{os.getpid()} {os.getppid()}")
os.rename(folder / "part", folder / "began")
while not (folder / "end").exists():
    time.sleep(0.05)
(folder / "ended").touch()
"""


def wait_until(condition, message="timed out"):
    limit = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < limit, message
        time.sleep(0.02)


def run(starter, code, log):
    """Start a run and wait for it; return its exit code and the lines of its log."""
    with log.open("wb") as file:
        process = starter.start([code], {"VARIABLE": "value", "OMP_NUM_THREADS": "1"}, file)
    wait_until(lambda: process.poll() is not None)
    return process.poll(), log.read_text().splitlines()


def test_a_forked_run_is_like_a_separate_program(tmp_path, monkeypatch):
    (tmp_path / "own_code.py").write_text("VERSION = 1\n")
    script, log, printed = tmp_path / "report.py", tmp_path / "log", []
    script.write_text(REPORT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    forking = ForkingStarter([str(script), "--option"], ["torch"], {}, printed.append)
    program = Starter([sys.executable, "-u", str(script), "--option"])
    assert forking.command == program.command
    for code, exit_code in [
        ("sys.exit(75)", 75),
        ("raise UserWarning('why')", 1),
        ("os.kill(0, signal.SIGKILL)", -signal.SIGKILL),
        ("print('over')", 0),
    ]:
        reports = []
        for each in (program, forking):
            actual_code, lines = run(each, code, log)
            assert actual_code == exit_code, lines
            reports.append((json.loads(lines[0]), sorted(lines[-2:])))
        assert reports[0][0] == reports[1][0]
    assert reports[1][1] == reports[0][1] == ["at exit", "over"]

    # Before an edit of the package a run has its modules, after it is a program that imports them.
    loaded = "print('torch' in sys.modules, multiprocessing.parent_process() is not None)"
    assert run(forking, loaded, log)[1][1:] == ["True True", "at exit"]
    versions = starters._code_versions()
    monkeypatch.setattr(starters, "_code_versions", lambda: {**versions, Path("new.py"): 1})
    for _ in range(2):
        assert run(forking, loaded, log) == (
            0,
            [*log.read_text().splitlines()[:1], "True False", "at exit"],
        )
    assert printed == ["the code has changed: later runs use the new code"]


def start_pool(folder):
    """Start a pool and wait for its run; return the pool and the pids of run and fork server."""
    folder.mkdir()
    (folder / "lasting.py").write_text(LASTING)
    with (folder / "output").open("wb") as output:
        pool = subprocess.Popen(
            [sys.executable, "-c", POOL, str(ROOT / "configs"), folder, folder / "lasting.py"],
            cwd=ROOT,
            stdout=output,
            start_new_session=True,
        )
    wait_until(lambda: (folder / "began").exists() or pool.poll() is not None)
    return pool, *map(int, (folder / "began").read_text().split())


def is_alive(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_a_killed_pool_leaves_its_run_until_it_ends_and_then_no_process(tmp_path):
    pool, run_pid, server = start_pool(tmp_path / "a")
    pool.kill()
    pool.wait(timeout=100)
    assert is_alive(run_pid)
    (tmp_path / "a" / "end").touch()
    wait_until(lambda: not is_alive(run_pid))
    assert (tmp_path / "a" / "ended").exists()
    wait_until(lambda: not is_alive(server), "the fork server is still alive")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_group_stops_the_run_and_the_pool_waits_for_it(tmp_path, number):
    pool, run_pid, server = start_pool(tmp_path / "a")
    os.killpg(pool.pid, number)
    assert pool.wait(timeout=100) == os.EX_TEMPFAIL, (tmp_path / "a" / "output").read_text()
    assert (tmp_path / "a" / "saved").exists() and not is_alive(run_pid)
    wait_until(lambda: not is_alive(server))


def test_the_first_interrupt_reaches_a_run_through_the_pool_and_the_second_kills_it(tmp_path):
    pool, run_pid, server = start_pool(tmp_path / "a")
    (tmp_path / "a" / "stay").touch()
    os.killpg(pool.pid, signal.SIGINT)
    signals = tmp_path / "a" / "signals"
    wait_until(signals.exists)
    os.killpg(pool.pid, signal.SIGINT)
    assert pool.wait(timeout=100) == os.EX_TEMPFAIL, (tmp_path / "a" / "output").read_text()
    assert signals.read_text().split() == [str(int(signal.SIGTERM))]
    assert not is_alive(run_pid)
    wait_until(lambda: not is_alive(server))
