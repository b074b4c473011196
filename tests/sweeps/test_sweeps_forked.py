"""Cells that are forked from one warm program, against programs of their own."""

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
TELL = """
import atexit, json, os, signal, sys
import code_of_ours
atexit.register(print, "at exit")
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "name": __name__, "file": __file__, "cwd": os.getcwd(),
    "told": os.environ["TOLD"], "threads": os.environ["OMP_NUM_THREADS"],
    "leads": os.getsid(0) == os.getpid() == os.getpgid(0), "parent": os.getppid(),
    "input": sys.stdin.read(), "open": len(os.listdir("/proc/self/fd")),
    "handlers": [str(signal.getsignal(n)) for n in sorted(signal.valid_signals())],
    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "code": code_of_ours.VERSION,
}))
exec(sys.argv[-1])
"""
# A pool over cells that save nothing, of the script and for the folder in its arguments.
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
    (tmp_path / "code_of_ours.py").write_text("VERSION = 1\n")
    path = tmp_path / "tell.py"
    path.write_text(TELL)
    return str(path)


def forking(script, said, modules=("code_of_ours",)):
    return ForkingStarter([script, "--option"], modules, {"OMP_NUM_THREADS": "1"}, said.append)


def until(condition, what="nothing"):
    limit = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


def run(starter, code, log):
    """Start a cell and wait for it; returns its exit code and the lines of its log."""
    until(starter.ready)
    with log.open("wb") as file:
        process = starter.start([code], {"TOLD": "so", "OMP_NUM_THREADS": "1"}, file)
    until(lambda: process.poll() is not None)
    return process.poll(), log.read_text().splitlines()


def test_a_forked_cell_is_what_a_program_of_its_own_would_be(script, tmp_path):
    log, program = tmp_path / "log", SubprocessStarter([sys.executable, "-u", script, "--option"])
    with forking(script, []) as starter:
        assert starter.command == program.command
        for code, ended in [
            ("sys.exit(75)", 75),
            ("raise UserWarning('why')", 1),
            ("os.kill(0, signal.SIGKILL)", -signal.SIGKILL),
            ("print('over')", 0),
        ]:
            told = []
            for each in (program, starter):
                code_of_it, lines = run(each, code, log)
                assert code_of_it == ended, lines
                told.append((json.loads(lines[0]), lines[-2:]))
            assert told[0] == told[1]
    assert told[1][0]["parent"] == os.getpid() and told[1][1] == ["over", "at exit"]


def test_an_edit_and_the_death_of_the_warm_program_are_told_and_survived(script, tmp_path):
    said, log, lasting = [], tmp_path / "log", tmp_path / "lasting"
    with forking(script, said) as starter:
        until(starter.ready)
        with lasting.open("wb") as file:
            last = starter.start(
                [f"while not os.path.exists({str(tmp_path / 'end')!r}): pass"],
                {"TOLD": "so"},
                file,
            )
        (tmp_path / "code_of_ours.py").write_text("VERSION = 'edited'\n")
        _, lines = run(starter, "", log)
        assert json.loads(lines[0])["code"] == "edited"
        assert len(said) == 1 and "the code has changed" in said[0]

        starter._server.process.kill()
        assert run(starter, "sys.exit(3)", log)[0] == 3
        until(starter.ready)
        starter._server.process.kill()  # between the answer that it is ready and the request
        with log.open("wb") as file:
            process = starter.start(["sys.exit(4)"], {"TOLD": "so"}, file)
        until(lambda: process.poll() is not None)
        assert process.poll() == 4
        assert len(said) == 3 and all("SIGKILL" in line for line in said[1:])

        assert last.poll() is None
        (tmp_path / "end").touch()
        until(lambda: last.poll() is not None)
        assert last.poll() == 0


def test_code_that_cannot_be_imported_ends_the_sweep_with_the_reason(script):
    with (
        forking(script, [], modules=("no_such_module",)) as starter,
        pytest.raises(UserError, match="No module named 'no_such_module'"),
    ):
        until(starter.ready)


def start_pool(folder):
    """A pool with its one cell begun; also returns the numbers of the cell and of its server."""
    folder.mkdir()
    (folder / "lasting.py").write_text(LASTING)
    pool = subprocess.Popen(
        [sys.executable, "-c", POOL, str(ROOT / "configs"), folder, folder / "lasting.py"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until(lambda: (folder / "began").exists() or pool.poll() is not None)
    cell, parent = map(int, (folder / "began").read_text().split())
    assert parent == pool.pid
    below = Path(f"/proc/{pool.pid}/task/{pool.pid}/children").read_text().split()
    (server,) = {int(pid) for pid in below} - {cell}
    return pool, cell, server


def lives(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_a_killed_pool_leaves_its_cell_and_no_server(tmp_path):
    pool, cell, server = start_pool(tmp_path / "a")
    pool.kill()
    pool.communicate(timeout=300)
    until(lambda: not lives(server), "the server lives on")
    assert lives(cell)
    (tmp_path / "a" / "end").touch()
    until(lambda: not lives(cell))
    assert (tmp_path / "a" / "ended").exists()


def test_the_first_interrupt_reaches_a_cell_through_the_pool_and_the_second_kills_it(tmp_path):
    pool, cell, server = start_pool(tmp_path / "a")
    os.killpg(pool.pid, signal.SIGINT)
    signals = tmp_path / "a" / "signals"
    until(signals.exists)
    os.killpg(pool.pid, signal.SIGINT)
    output, _ = pool.communicate(timeout=300)
    assert pool.returncode == os.EX_TEMPFAIL, output
    assert signals.read_text().split() == [str(int(signal.SIGTERM))]
    assert not lives(cell) and not lives(server)
    assert not (tmp_path / "a" / "ended").exists()


@pytest.mark.slow
def test_a_forked_cell_trains_the_same_numbers_as_one_alone(tmp_path):
    words = ["data=digits", "model=resnet14_mini", "norm=sn", "batch=8x8", "trainer.max_steps=3"]
    script, environment = [str(ROOT / "train.py")], {"OMP_NUM_THREADS": "1"}
    cpu = {**environment, "CUDA_VISIBLE_DEVICES": ""}
    program = SubprocessStarter([sys.executable, *script])
    with ForkingStarter(script, PRELOADED_MODULES, cpu, print) as starter:
        until(starter.ready)
        assert len(os.listdir(f"/proc/{starter._server.process.pid}/task")) == 1
        processes = []
        for name, each in (("forked", starter), ("alone", program)):
            with (tmp_path / f"{name}.txt").open("wb") as log:
                own = [*words, f"run_dir={tmp_path / name}", "data.workers=1"]
                processes.append(each.start(own, cpu, log))
        for process in processes:
            until(lambda process=process: process.poll() is not None)
        codes = [process.poll() for process in processes]
        assert codes == [0, 0], [(file.read_text()) for file in tmp_path.glob("*.txt")]
    results = assert_same_outcome(tmp_path / "forked", tmp_path / "alone")
    origins = [{**result["provenance"], "written_at": None} for result in results]
    assert origins[0] == origins[1]
