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
from sweep_outcomes import assert_same_outcome

from hydra_plugins.sn_launchers.local_launcher import PRELOADED_MODULES
from sn_imagenet.errors import UserError
from sn_imagenet.sweeps.starters import ForkingStarter, SubprocessStarter

ROOT = Path(__file__).parents[2]
REPORT = """
import atexit, json, os, signal, sys
import own_code
atexit.register(print, "at exit")
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "name": __name__, "file": __file__, "cwd": os.getcwd(),
    "variable": os.environ["VARIABLE"], "threads": os.environ["OMP_NUM_THREADS"],
    "leads": os.getsid(0) == os.getpid() == os.getpgid(0), "parent": os.getppid(),
    "input": sys.stdin.read(), "open": len(os.listdir("/proc/self/fd")),
    "handlers": [str(signal.getsignal(n)) for n in sorted(signal.valid_signals())],
    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "code": own_code.VERSION,
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
with ForkingStarter([script], [], {}, print) as forking:
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
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, on_signal)
(folder / "part").write_text(f"{os.getpid()} {os.getppid()}")
os.rename(folder / "part", folder / "began")
while not (folder / "end").exists():
    time.sleep(0.05)
(folder / "ended").touch()
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "own_code.py").write_text("VERSION = 1\n")
    path = tmp_path / "report.py"
    path.write_text(REPORT)
    return str(path)


def forking_starter(script, printed, modules=("own_code",)):
    return ForkingStarter([script, "--option"], modules, {"OMP_NUM_THREADS": "1"}, printed.append)


def wait_until(condition, message="timed out"):
    limit = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < limit, message
        time.sleep(0.02)


def run(starter, code, log):
    """Start a run and wait for it; return its exit code and the lines of its log."""
    wait_until(starter.ready)
    with log.open("wb") as file:
        process = starter.start([code], {"VARIABLE": "value", "OMP_NUM_THREADS": "1"}, file)
    wait_until(lambda: process.poll() is not None)
    return process.poll(), log.read_text().splitlines()


def test_a_forked_run_is_like_a_separate_program(script, tmp_path):
    log, program = tmp_path / "log", SubprocessStarter([sys.executable, "-u", script, "--option"])
    with forking_starter(script, []) as starter:
        assert starter.command == program.command
        for code, exit_code in [
            ("sys.exit(75)", 75),
            ("raise UserWarning('why')", 1),
            ("os.kill(0, signal.SIGKILL)", -signal.SIGKILL),
            ("print('over')", 0),
        ]:
            reports = []
            for each in (program, starter):
                actual_code, lines = run(each, code, log)
                assert actual_code == exit_code, lines
                reports.append((json.loads(lines[0]), lines[-2:]))
            assert reports[0] == reports[1]
    assert reports[1][0]["parent"] == os.getpid() and reports[1][1] == ["over", "at exit"]


def test_the_fork_server_restarts_after_an_edit_and_after_its_death(script, tmp_path):
    printed, log, lasting = [], tmp_path / "log", tmp_path / "lasting"
    with forking_starter(script, printed) as starter:
        wait_until(starter.ready)
        with lasting.open("wb") as file:
            last = starter.start(
                [f"while not os.path.exists({str(tmp_path / 'end')!r}): pass"],
                {"VARIABLE": "value"},
                file,
            )
        (tmp_path / "own_code.py").write_text("VERSION = 'edited'\n")
        _, lines = run(starter, "", log)
        assert json.loads(lines[0])["code"] == "edited"
        assert len(printed) == 1 and "the code has changed" in printed[0]

        starter._server.process.kill()
        assert run(starter, "sys.exit(3)", log)[0] == 3
        wait_until(starter.ready)
        starter._server.process.kill()  # between its READY and the request
        with log.open("wb") as file:
            process = starter.start(["sys.exit(4)"], {"VARIABLE": "value"}, file)
        wait_until(lambda: process.poll() is not None)
        assert process.poll() == 4
        assert len(printed) == 3 and all("SIGKILL" in line for line in printed[1:])

        assert last.poll() is None
        (tmp_path / "end").touch()
        wait_until(lambda: last.poll() is not None)
        assert last.poll() == 0


def test_an_import_error_ends_the_sweep_with_its_reason(script):
    with (
        forking_starter(script, [], modules=("no_such_module",)) as starter,
        pytest.raises(UserError, match="No module named 'no_such_module'"),
    ):
        wait_until(starter.ready)


def start_pool(folder):
    """Start a pool and wait for its run; return the pool and the pids of run and fork server."""
    folder.mkdir()
    (folder / "lasting.py").write_text(LASTING)
    pool = subprocess.Popen(
        [sys.executable, "-c", POOL, str(ROOT / "configs"), folder, folder / "lasting.py"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: (folder / "began").exists() or pool.poll() is not None)
    run_pid, parent = map(int, (folder / "began").read_text().split())
    assert parent == pool.pid
    children = Path(f"/proc/{pool.pid}/task/{pool.pid}/children").read_text().split()
    (server,) = {int(pid) for pid in children} - {run_pid}
    return pool, run_pid, server


def is_alive(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_a_killed_pool_leaves_its_run_and_no_fork_server(tmp_path):
    pool, run_pid, server = start_pool(tmp_path / "a")
    pool.kill()
    pool.communicate(timeout=300)
    wait_until(lambda: not is_alive(server), "the fork server is still alive")
    assert is_alive(run_pid)
    (tmp_path / "a" / "end").touch()
    wait_until(lambda: not is_alive(run_pid))
    assert (tmp_path / "a" / "ended").exists()


def test_the_first_interrupt_reaches_a_run_through_the_pool_and_the_second_kills_it(tmp_path):
    pool, run_pid, server = start_pool(tmp_path / "a")
    os.killpg(pool.pid, signal.SIGINT)
    signals = tmp_path / "a" / "signals"
    wait_until(signals.exists)
    os.killpg(pool.pid, signal.SIGINT)
    output, _ = pool.communicate(timeout=300)
    assert pool.returncode == os.EX_TEMPFAIL, output
    assert signals.read_text().split() == [str(int(signal.SIGTERM))]
    assert not is_alive(run_pid) and not is_alive(server)
    assert not (tmp_path / "a" / "ended").exists()


@pytest.mark.slow
def test_a_forked_run_trains_to_the_same_numbers_as_a_separate_program(tmp_path):
    short = ["data=digits", "model=resnet14_mini", "norm=sn", "batch=8x8", "trainer.max_steps=3"]
    script, environment = [str(ROOT / "train.py")], {"OMP_NUM_THREADS": "1"}
    cpu = {**environment, "CUDA_VISIBLE_DEVICES": ""}
    program = SubprocessStarter([sys.executable, *script])
    with ForkingStarter(script, PRELOADED_MODULES, cpu, print) as starter:
        wait_until(starter.ready)
        assert len(os.listdir(f"/proc/{starter._server.process.pid}/task")) == 1
        processes = []
        for name, each in (("forked", starter), ("separate", program)):
            with (tmp_path / f"{name}.txt").open("wb") as log:
                own = [*short, f"run_dir={tmp_path / name}", "data.workers=1"]
                processes.append(each.start(own, cpu, log))
        for process in processes:
            wait_until(lambda process=process: process.poll() is not None)
        codes = [process.poll() for process in processes]
        assert codes == [0, 0], [(file.read_text()) for file in tmp_path.glob("*.txt")]
    results = assert_same_outcome(tmp_path / "forked", tmp_path / "separate")
    provenances = [{**result["provenance"], "written_at": None} for result in results]
    assert provenances[0] == provenances[1]
