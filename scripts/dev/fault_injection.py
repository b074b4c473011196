"""Fault injection into real training runs, for kill_test.py and attack.py.

Weights, optimizer, metrics and result must equal those of an uninterrupted run bit for bit; only
rates (images/s, seconds) may differ.
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
    # A checkpoint every 0.2 s, so that some kills come while one is written.
    *("checkpoint.minutes=0.0033", "calibration.samples=256"),
)
RATES = ("images_per_s", "data_wait_pct")
TIMEOUT_S = 3600.0
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["sn_imagenet.command_line", "sn_imagenet.training"])


@dataclass(frozen=True)
class Experiment:
    """A training run: the name of its folder, overrides of train.py, number of processes.

    ``prefix``: a command that starts the run's command. ``environment``: variables added to this
    process's. ``forked``: fork a process that has done the imports, which take most of the time of
    a short run; excludes ``processes``, ``prefix`` and ``environment``.
    """

    name: str
    overrides: tuple[str, ...]
    processes: int = 1
    prefix: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    forked: bool = False

    def command(self, run_dir: Path) -> list[str]:
        start = [*self.prefix, sys.executable]
        if self.processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone"]
            start += [f"--nproc_per_node={self.processes}"]
        return [*start, *self.program(run_dir)]

    def program(self, run_dir: Path) -> list[str]:
        """``train.py`` and its arguments."""
        # Quoted, because a path may contain any character.
        quoted = str(run_dir).replace("'", "\\'")
        return [str(ROOT / "train.py"), *COMMON, *self.overrides, f"run_dir='{quoted}'"]


@dataclass(frozen=True)
class ReferenceRun:
    """An uninterrupted run, and the seconds that its parts took."""

    path: Path
    start_s: float
    training_s: float
    evaluation_s: float
    report_s: float


class ProcessHandle(Protocol):
    """The common interface of subprocess.Popen and :class:`ForkedProcess`."""

    pid: int

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float) -> int: ...


class ForkedProcess:
    """Runs ``program`` in a forked process that has already imported the training code."""

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


def start(experiment: Experiment, run_dir: Path) -> ProcessHandle:
    """Start or resume a run in its own process group."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    log = log_path(run_dir)
    if experiment.forked:
        return ForkedProcess(experiment.program(run_dir), log)
    return start_logged(experiment.command(run_dir), log, dict(experiment.environment))


def start_logged(
    command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start ``command`` in its own process group; its output is appended to ``log``."""
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


def log_path(run_dir: Path) -> Path:
    """The log of all starts of a run."""
    return run_dir.with_name(f"{run_dir.name}.log")


def run_to_end(experiment: Experiment, run_dir: Path) -> None:
    """Start or resume a run and wait until it finishes.

    Raises:
        RuntimeError: it failed; the message has the end of its log.
    """
    code = start(experiment, run_dir).wait(timeout=TIMEOUT_S)
    if code:
        tail = log_path(run_dir).read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{experiment.name} ended with {code}:\n{tail}")


def train_reference(experiment: Experiment, run_dir: Path) -> ReferenceRun:
    """Train without faults."""
    started = time.time()
    run_to_end(experiment, run_dir)
    files = RunDirectory(run_dir)
    claimed, trained, evaluated = (
        path.stat().st_mtime for path in (files.config, files.final, files.result)
    )
    last = max(path.stat().st_mtime for path in run_dir.iterdir())
    times = claimed - started, trained - claimed, evaluated - trained, last - evaluated
    return ReferenceRun(run_dir, *times)


def last_logged_step(run_dir: Path) -> int:
    """The last step in the metrics, or 0."""
    try:
        lines = (run_dir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return max((json.loads(line)["step"] for line in lines), default=0)


def saved_step(run_dir: Path) -> int:
    """The step of the newest checkpoint, or 0."""
    with suppress(RunError):
        state, _ = checkpoint.load_last(RunDirectory(run_dir))
        return state["step"] if state else 0
    return 0


class FaultTrigger:
    """Decides when to inject a fault into a run; ``is_due()`` is true from that time on.

    Kinds: ``start``, before the run claims its directory; ``time``, at a random time of training;
    ``step``, at a random step; ``save``, while a checkpoint is written; ``evaluation``, after
    training (validation, calibration, evaluation); ``result``, while the result is written;
    ``figures``, after that.
    """

    KINDS = ("start", "time", "step", "save", "evaluation", "result", "figures")

    def __init__(
        self, kind: str, run_dir: Path, reference: ReferenceRun, rng: random.Random
    ) -> None:
        self.kind = kind
        self.files = RunDirectory(run_dir)
        self.threshold = last_logged_step(run_dir) + rng.randint(1, 20)
        self.saves = rng.randint(1, 6)
        longest = {
            "start": reference.start_s,
            "time": reference.training_s / 3,
            "evaluation": reference.evaluation_s,
            "figures": reference.report_s,
        }
        self.delay = rng.uniform(0, longest.get(kind, 0))
        self.since: float | None = time.monotonic() if kind == "start" else None
        self.saving = False

    def is_due(self) -> bool:
        if self.kind == "step":
            return last_logged_step(self.files.path) >= self.threshold
        if self.kind == "save":
            before, self.saving = self.saving, self.files.newest.exists()
            self.saves -= self.saving and not before
            return self.saving and self.saves <= 0
        if self.kind == "result":
            unfinished = f"{self.files.result.name}."
            with suppress(FileNotFoundError):
                names = os.listdir(self.files.path)
                return any(n == unfinished[:-1] or n.startswith(unfinished) for n in names)
            return False
        lock, final, result = self.files.lock, self.files.final, self.files.result
        files = {"time": (lock,), "evaluation": (lock, final)}.get(self.kind, (result,))
        if self.since is None and all(file.exists() for file in files):
            self.since = time.monotonic()
        return self.since is not None and time.monotonic() - self.since >= self.delay

    def pause(self) -> None:
        """Sleep until the next check."""
        time.sleep(0 if self.kind in ("save", "result") and self.files.lock.exists() else 0.005)


def inject_fault(
    process: ProcessHandle, trigger: FaultTrigger, number: signal.Signals = signal.SIGKILL
) -> bool:
    """Wait until ``trigger`` is due. Then kill the process with all processes that it started, or
    send it another signal, and wait until it ends.

    Returns:
        Whether the fault was injected; the process may have ended before.
    """
    while process.poll() is None:
        if trigger.is_due():
            for pid in process_tree(process.pid) if number == signal.SIGKILL else [process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            process.wait(timeout=TIMEOUT_S)
            return True
        trigger.pause()
    return False


def start_and_inject(
    experiment: Experiment,
    run_dir: Path,
    trigger: FaultTrigger,
    number: signal.Signals = signal.SIGKILL,
) -> tuple[bool, list[str]]:
    """Start the run and inject a fault.

    Returns:
        Whether the fault was injected and ended the run, and the problems: steps of a checkpoint
        from which the run did not resume, a traceback, an exit code that does not fit the signal.
    """
    step = saved_step(run_dir)
    log = log_path(run_dir)
    offset = log.stat().st_size if log.exists() else 0
    process = start(experiment, run_dir)
    injected = inject_fault(process, trigger, number)
    problems = log_problems(log.read_bytes()[offset:].decode(errors="replace"), step)
    expected = {-number, os.EX_TEMPFAIL, 0}  # 0: the run may finish all the same
    if injected and process.returncode not in expected and experiment.processes == 1:
        problems.append(f"{number.name} ended it with {process.returncode}")
    return injected and process.returncode != 0, problems


def log_problems(output: str, step: int = 0) -> list[str]:
    """Problems in the output of one start of a run whose checkpoint is of ``step``."""
    problems = []
    resumed = re.search(r"Resuming from epoch \d+, step (\d+)", output)
    if resumed and int(resumed[1]) < step:
        problems.append(f"resumed from step {resumed[1]}, but step {step} was saved")
    # torchrun's own agent prints a traceback if a signal ends it.
    if "Traceback" in output.split("torch/distributed/")[0]:
        problems.append(f"a traceback: {output.strip().splitlines()[-1]}")
    return problems


def run_with_faults(
    experiment: Experiment,
    reference: ReferenceRun,
    run_dir: Path,
    faults: Iterable[tuple[str, signal.Signals]],
    rng: random.Random,
) -> tuple[int, list[str]]:
    """Inject one (trigger, signal) fault after the other into a run, and let it finish. If it
    finishes early, another run gets the remaining faults.

    Returns:
        The number of injected faults, and all problems.
    """
    problems: list[str] = []
    count = 0
    runs = itertools.count()
    current = run_dir
    for kind, number in faults:
        for _attempt in range(3):
            if RunDirectory(current).result.exists():
                problems += finish_and_compare(experiment, reference, current)
                current = run_dir.with_name(f"{run_dir.name}{next(runs)}")
            trigger = FaultTrigger(kind, current, reference, rng)
            injected, new = start_and_inject(experiment, current, trigger, number)
            problems += new
            count += injected
            if injected:
                where = f"at step >= {last_logged_step(current)}"
                print(f"{experiment.name}: {number.name} ({kind}) {where} {new}", flush=True)
                break
    return count, problems + finish_and_compare(experiment, reference, current)


def finish_and_compare(experiment: Experiment, reference: ReferenceRun, run_dir: Path) -> list[str]:
    """Let a run finish, if it has not yet, and return its problems."""
    step = saved_step(run_dir)
    log = log_path(run_dir)
    offset = log.stat().st_size if log.exists() else 0
    try:
        run_to_end(experiment, run_dir)
        problems = log_problems(log.read_bytes()[offset:].decode(errors="replace"), step)
        problems += run_differences(reference.path, run_dir)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        problems = [str(error)]
    print(f"{experiment.name} ({run_dir.name!r}): {'; '.join(problems) or 'identical'}", flush=True)
    return problems


def run_differences(expected: Path, actual: Path) -> list[str]:
    """Differences between two run directories, apart from rates."""
    problems = []
    for name in ("final.pt", "last.pt"):
        states = [torch.load(path / name, weights_only=True) for path in (expected, actual)]
        for key in ("model", "optimizer", "step", "epoch", "step_in_epoch", "last_finite_loss"):
            if not _same(*(state.get(key) for state in states)):
                problems.append(f"{name}: {key}")
    rows = [_rows(path / "metrics.jsonl") for path in (expected, actual)]
    if rows[0] != rows[1]:
        pairs = itertools.zip_longest(*rows)
        problems += [f"metrics.jsonl: {a} -> {b}" for a, b in pairs if a != b][:3]
    results = [json.loads((path / "result.json").read_text()) for path in (expected, actual)]
    for result in results:
        for evaluation in result["evaluations"]:
            del evaluation["at"]
        result["training"] = {k: result["training"][k] for k in ("steps", "samples", "epochs")}
    for key in ("status", "evaluations", "importance_weights", "training", "departures"):
        if results[0][key] != results[1][key]:
            problems.append(f"result.json: {key}")
    names = [{path.name for path in folder.iterdir()} for folder in (expected, actual)]
    missing = names[0] - names[1] - {"log.txt"}
    return [*problems, *(f"{name} is missing" for name in sorted(missing))]


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
