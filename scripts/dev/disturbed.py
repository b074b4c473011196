"""Disturbs real training runs and compares them with undisturbed ones: what kill_test.py and
attack.py share.

Weights, optimizer, metrics and result must be bit for bit those of the undisturbed run; rates
(images/s, seconds) alone may differ.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from sn_imagenet.runs import RunDirectory, RunError, checkpoint
from sn_imagenet.sweeps.pool import process_tree

ROOT = Path(__file__).resolve().parents[2]
COMMON = (
    *("data=digits", "model=resnet14_mini", "trainer.epochs=3", "trainer.log_every=4"),
    # A checkpoint every 0.2 s, so that some kills meet one being written.
    *("checkpoint.minutes=0.0033", "calibration.samples=256"),
)
RATES = ("images_per_s", "data_wait_pct")
TIMEOUT_S = 3600.0
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["sn_imagenet.command_line", "sn_imagenet.training"])


@dataclass(frozen=True)
class Experiment:
    """What is trained: a name for its folder, overrides, processes.

    ``before``: the command that starts its command. ``environment``: what differs from this
    process's. ``forked``: its process has the imports behind it already, which take most of a short
    run's time; only without the other three.
    """

    name: str
    overrides: tuple[str, ...]
    processes: int = 1
    before: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    forked: bool = False

    def command(self, run_dir: Path) -> list[str]:
        start = [*self.before, sys.executable]
        if self.processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone"]
            start += [f"--nproc_per_node={self.processes}"]
        return [*start, *self.program(run_dir)]

    def program(self, run_dir: Path) -> list[str]:
        """``train.py`` and its arguments."""
        # In quotes: a path may hold whatever a path can.
        quoted = str(run_dir).replace("'", "\\'")
        return [str(ROOT / "train.py"), *COMMON, *self.overrides, f"run_dir='{quoted}'"]


@dataclass(frozen=True)
class Undisturbed:
    """A run that was left alone, and how many seconds its parts took."""

    path: Path
    start_s: float
    training_s: float
    evaluation_s: float
    report_s: float


class Started(Protocol):
    """A process, as subprocess.Popen is one."""

    pid: int

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float) -> int: ...


class Forked:
    """A :class:`Started` that runs ``program`` with the imports of the training behind it."""

    def __init__(self, program: Sequence[str], log: Path) -> None:
        self._process = FORKSERVER.Process(target=_run, args=(program, log))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("train.py", timeout)
        return code


def _run(program: Sequence[str], log: Path) -> None:
    os.setsid()
    os.chdir(ROOT)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    sys.argv = list(program)
    runpy.run_path(program[0], run_name="__main__")


def start(experiment: Experiment, run_dir: Path) -> Started:
    """Start or continue a run, in a process group of its own."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    if experiment.forked:
        return Forked(experiment.program(run_dir), log_of(run_dir))
    return start_logged(experiment.command(run_dir), log_of(run_dir), dict(experiment.environment))


def start_logged(
    command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start ``command`` in a process group of its own; what it says is appended to ``log``."""
    with open(log, "ab") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def log_of(run_dir: Path) -> Path:
    """What a run said, of all its starts."""
    return run_dir.with_name(f"{run_dir.name}.log")


def finish(experiment: Experiment, run_dir: Path) -> None:
    """Let a run go to its end.

    Raises:
        RuntimeError: it came to no good end; says its last words.
    """
    code = start(experiment, run_dir).wait(timeout=TIMEOUT_S)
    if code:
        words = log_of(run_dir).read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{experiment.name} ended with {code}:\n{words}")


def undisturbed(experiment: Experiment, run_dir: Path) -> Undisturbed:
    """Train without a disturbance."""
    began = time.time()
    finish(experiment, run_dir)
    files = RunDirectory(run_dir)
    claimed, trained, told = (
        path.stat().st_mtime for path in (files.config, files.final, files.result)
    )
    last = max(path.stat().st_mtime for path in run_dir.iterdir())
    return Undisturbed(run_dir, claimed - began, trained - claimed, told - trained, last - told)


def reached(run_dir: Path) -> int:
    """The last step in the metrics."""
    try:
        lines = (run_dir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return max((json.loads(line)["step"] for line in lines), default=0)


def saved(run_dir: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    with suppress(RunError):
        state, _ = checkpoint.load_last(RunDirectory(run_dir))
        return state["step"] if state else 0
    return 0


class Moments:
    """When a start of a run is disturbed: ``due()`` says whether its moment has come.

    ``start``: before it has claimed its directory. ``time``: at a random time of its training.
    ``step``: at a random step. ``save``: while a checkpoint is written. ``evaluation``: after the
    training (validation, calibration, evaluation). ``result``: while the result is written.
    ``figures``: after that.
    """

    KINDS = ("start", "time", "step", "save", "evaluation", "result", "figures")

    def __init__(self, kind: str, run_dir: Path, like: Undisturbed, chance: random.Random) -> None:
        self.kind = kind
        self.files = RunDirectory(run_dir)
        self.threshold = reached(run_dir) + chance.randint(1, 20)
        self.saves = chance.randint(1, 6)
        longest = {
            "start": like.start_s,
            "time": like.training_s / 3,
            "evaluation": like.evaluation_s,
            "figures": like.report_s,
        }
        self.delay = chance.uniform(0, longest.get(kind, 0))
        self.since: float | None = time.monotonic() if kind == "start" else None
        self.saving = False

    def due(self) -> bool:
        if self.kind == "step":
            return reached(self.files.path) >= self.threshold
        if self.kind == "save":
            before, self.saving = self.saving, self.files.newest.exists()
            self.saves -= self.saving and not before
            return self.saving and self.saves <= 0
        if self.kind == "result":
            unfinished = f"{self.files.result.name}."
            with suppress(FileNotFoundError):
                names = os.listdir(self.files.path)
                return any(one == unfinished[:-1] or one.startswith(unfinished) for one in names)
            return False
        lock, final, result = self.files.lock, self.files.final, self.files.result
        signs = {"time": (lock,), "evaluation": (lock, final)}.get(self.kind, (result,))
        if self.since is None and all(sign.exists() for sign in signs):
            self.since = time.monotonic()
        return self.since is not None and time.monotonic() - self.since >= self.delay

    def pause(self) -> None:
        """Between two looks."""
        time.sleep(0 if self.kind in ("save", "result") and self.files.lock.exists() else 0.005)


def disturb(process: Started, moment: Moments, number: signal.Signals = signal.SIGKILL) -> bool:
    """Wait for the moment, then kill the process and all that it started, or send it another
    signal; and wait for its end.

    Returns:
        Whether the moment came; the process may have ended before.
    """
    while process.poll() is None:
        if moment.due():
            for pid in process_tree(process.pid) if number == signal.SIGKILL else [process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            process.wait(timeout=TIMEOUT_S)
            return True
        moment.pause()
    return False


def kill(
    experiment: Experiment,
    run_dir: Path,
    moment: Moments,
    number: signal.Signals = signal.SIGKILL,
) -> tuple[bool, list[str]]:
    """Start the run and disturb it.

    Returns:
        Whether the moment came and the run felt it, and what was wrong: steps that a checkpoint
        held and the start did not go on from, a traceback, an exit code that says nothing of a
        signal.
    """
    before = saved(run_dir)
    log = log_of(run_dir)
    said = log.stat().st_size if log.exists() else 0
    process = start(experiment, run_dir)
    came = disturb(process, moment, number)
    found = wrong_words(log.read_bytes()[said:].decode(errors="replace"), before)
    good = {-number, os.EX_TEMPFAIL, 0}  # it may come to its end all the same
    if came and process.returncode not in good and experiment.processes == 1:
        found.append(f"{number.name} ended it with {process.returncode}")
    return came and process.returncode != 0, found


def wrong_words(said: str, step: int = 0) -> list[str]:
    """What a start of a run should not have said, where a checkpoint holds ``step`` steps."""
    found = []
    went_on = re.search(r"going on after epoch \d+, step (\d+)", said)
    if went_on and int(went_on[1]) < step:
        found.append(f"went on from step {went_on[1]}, step {step} was saved")
    # torchrun's own agent prints one where a signal ends it.
    if "Traceback" in said.split("torch/distributed/")[0]:
        found.append(f"a traceback: {said.strip().splitlines()[-1]}")
    return found


def survives(
    experiment: Experiment,
    like: Undisturbed,
    run_dir: Path,
    disturbances: Iterable[tuple[str, signal.Signals]],
    chance: random.Random,
) -> tuple[int, list[str]]:
    """Disturb a run (moment, signal) after (moment, signal), and let it end. Where it comes to its
    end before, the next are another run's.

    Returns:
        How many moments came, and all that was wrong.
    """
    wrong: list[str] = []
    came = 0
    runs = itertools.count()
    here = run_dir
    for kind, number in disturbances:
        for _attempt in range(3):
            if RunDirectory(here).result.exists():
                wrong += ended_well(experiment, like, here)
                here = run_dir.with_name(f"{run_dir.name}{next(runs)}")
            did, found = kill(experiment, here, Moments(kind, here, like, chance), number)
            wrong += found
            came += did
            if did:
                where = f"at step >= {reached(here)}"
                print(f"{experiment.name}: {number.name} ({kind}) {where} {found}", flush=True)
                break
    return came, wrong + ended_well(experiment, like, here)


def ended_well(experiment: Experiment, like: Undisturbed, run_dir: Path) -> list[str]:
    """Let a run go to its end, if it has not come there; what is wrong with it then."""
    before = saved(run_dir)
    log = log_of(run_dir)
    said = log.stat().st_size if log.exists() else 0
    try:
        finish(experiment, run_dir)
        found = wrong_words(log.read_bytes()[said:].decode(errors="replace"), before)
        found += differences(like.path, run_dir)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        found = [str(error)]
    print(f"{experiment.name} ({run_dir.name!r}): {'; '.join(found) or 'the same'}", flush=True)
    return found


def differences(expected: Path, actual: Path) -> list[str]:
    """In what two run directories differ, rates apart."""
    found = []
    for name in ("final.pt", "last.pt"):
        states = [torch.load(path / name, weights_only=True) for path in (expected, actual)]
        for key in ("model", "optimizer", "step", "epoch", "step_in_epoch", "last_finite_loss"):
            if not _same(*(state.get(key) for state in states)):
                found.append(f"{name}: {key}")
    rows = [_rows(path / "metrics.jsonl") for path in (expected, actual)]
    if rows[0] != rows[1]:
        pairs = itertools.zip_longest(*rows)
        found += [f"metrics.jsonl: {a} -> {b}" for a, b in pairs if a != b][:3]
    results = [json.loads((path / "result.json").read_text()) for path in (expected, actual)]
    for result in results:
        for evaluation in result["evaluations"]:
            del evaluation["at"]
        result["training"] = {k: result["training"][k] for k in ("steps", "samples", "epochs")}
    for key in ("status", "evaluations", "importance_weights", "training", "departures"):
        if results[0][key] != results[1][key]:
            found.append(f"result.json: {key}")
    kept = [{path.name for path in folder.iterdir()} for folder in (expected, actual)]
    missing = kept[0] - kept[1] - {"log.txt"}
    return [*found, *(f"{name} is missing" for name in sorted(missing))]


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in RATES} for row in rows]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
