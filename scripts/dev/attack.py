"""Inject faults of machines, users and administrators into training, and count the lost runs.

python scripts/dev/attack.py --out attack.json            all classes; hours on one core
python scripts/dev/attack.py --only kills_norms umask     some classes

Each class injects faults into short runs on the digits and lets the same command finish them. A run
counts as lost if it differs from an uninterrupted one (fault_injection.py), did not resume from its
newest checkpoint, needed help, or printed a traceback. The classes are added to those in the output
file. Exit code 0 if no run is lost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from fault_injection import (
    COMMON,
    ROOT,
    TIMEOUT_S,
    Experiment,
    ReferenceRun,
    last_logged_step,
    log_problems,
    run_differences,
    run_with_faults,
    start_logged,
    train_reference,
)

from sn_imagenet.sweeps.pool import process_tree

Outcome = tuple[int, list[str]]  # number of injected faults, problems
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
HUP, USR1 = signal.SIGHUP, signal.SIGUSR1
# A background job may start with these signals ignored, and the runs would inherit that.
for _number in (TERM, INT, HUP, USR1):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)
NORMS = ("bn", "gn", "in", "ln", "sn", "brn", "sync_bn", "frozen_bn")
SMALL = ("batch=8x2", "data.classes=5", "data.subset=0.5")  # 21 steps an epoch
SN = Experiment("sn", ("norm=sn", *SMALL))
WARM = replace(SN, forked=True)
SHORT = replace(WARM, overrides=(*SN.overrides, "trainer.epochs=1"))
# Prefixes of a command that change the machine for this command only; they need mount rights.
MOUNTED = ("unshare", "--mount", "sh", "-c")
NO_PROC = (*MOUNTED, 'mount -t tmpfs -o ro tmpfs /proc && exec "$@"', "sh")
READ_ONLY_HOME = (
    *MOUNTED,
    'mount --bind "$HOME" "$HOME" && mount -o remount,bind,ro "$HOME" && exec "$@"',
    "sh",
)


class Attack:
    """The classes of faults, as public methods, and the folder of their runs."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.number = itertools.count()
        self.reference = cache(self._train_reference)

    def _train_reference(self, experiment: Experiment) -> ReferenceRun:
        return train_reference(experiment, self.folder / "reference" / str(next(self.number)))

    def _run(
        self,
        experiment: Experiment,
        *plan: tuple[str, signal.Signals],
        run_dir: Path | None = None,
        other_numerics: bool = False,
    ) -> Outcome:
        """Inject the planned (trigger, signal) faults and compare with an uninterrupted run.

        ``other_numerics``: the changed machine computes other numbers, so the uninterrupted run
        needs the same prefix and environment.
        """
        baseline = replace(experiment, name="reference")
        if not other_numerics:
            baseline = replace(baseline, prefix=(), environment=())
        reference = self.reference(baseline)
        run_dir = run_dir or self.folder / "interrupted" / experiment.name
        return run_with_faults(experiment, reference, run_dir, plan, self.rng)

    # Kills, by phase, method and placement

    def kills_start(self) -> Outcome:
        return self._run(replace(SN, name="start"), *[("start", KILL)] * 8)

    def kills_training(self) -> Outcome:
        plan = [("time", KILL), ("step", KILL), ("step", KILL)] * 4
        return self._run(replace(WARM, name="training"), *plan)

    def kills_save(self) -> Outcome:
        return self._run(replace(WARM, name="save"), *[("save", KILL)] * 12)

    def kills_evaluation(self) -> Outcome:
        return self._run(replace(SHORT, name="evaluation"), *[("evaluation", KILL)] * 10)

    def kills_result(self) -> Outcome:
        return self._run(replace(SHORT, name="result"), *[("result", KILL)] * 6)

    def kills_figures(self) -> Outcome:
        return self._run(replace(SHORT, name="figures"), *[("figures", KILL)] * 6)

    def kills_norms(self) -> Outcome:
        plan = (("step", KILL), ("save", KILL), ("time", KILL), ("evaluation", KILL))
        return _total(
            self._run(replace(WARM, name=f"norm_{norm}", overrides=overrides), *plan)
            for norm in NORMS
            for overrides in [(f"norm={norm}", *SMALL)]
        )

    def kills_torchrun(self) -> Outcome:
        plan = (("step", KILL), ("save", KILL), ("time", KILL), ("evaluation", KILL))
        return self._run(replace(SN, name="torchrun", processes=2), *plan)

    def kills_workers(self) -> Outcome:
        plan = (("step", KILL), ("save", KILL), ("evaluation", KILL))
        workers = Experiment("workers", ("norm=bn", *SMALL, "data.workers=2"))
        return self._run(workers, *plan)

    # Signals

    def signals_training(self) -> Outcome:
        plan = [(when, number) for when in ("step", "evaluation") for number in (TERM, INT, HUP)]
        return self._run(replace(WARM, name="signals"), *plan, ("save", USR1))

    def signals_imports(self) -> Outcome:
        plan = [("start", number) for number in (TERM, INT, HUP, USR1)] * 2
        return self._run(replace(SN, name="imports"), *plan)

    # Sweeps

    def launcher(self) -> Outcome:
        """The local launcher: killed alone, killed with its runs, or its group interrupted."""
        overrides = ("norm=bn,gn,sn", *SMALL, "seed=0,1", "sweep.slots=2")
        return self._sweep("launcher", overrides, ["launcher", "tree", "group"] * 2)

    def sweep_of_30(self) -> Outcome:
        """30 runs of two steps; the launcher is killed twice with all processes it started."""
        overrides = ("norm=bn,gn,sn", *SMALL, "trainer.max_steps=2", "seed=range(10)")
        return self._sweep("thirty", overrides, ["tree", "tree"])

    def _sweep(self, name: str, overrides: tuple[str, ...], targets: Sequence[str]) -> Outcome:
        """Inject faults into a local sweep and compare with the same sweep in one process."""
        baseline, runs = (self.folder / name / kind for kind in ("reference", "runs"))
        log = baseline.with_suffix(".log")
        log.parent.mkdir(parents=True)
        command = [sys.executable, "train.py", "-m", *COMMON, *overrides, f"runs_dir={baseline}"]
        if start_logged(command, log, {}).wait(timeout=TIMEOUT_S):
            return 0, [f"the uninterrupted sweep failed: {log.read_text()[-500:]}"]
        injected, problems = _total(self._start_sweep(runs, overrides, t) for t in [*targets, ""])
        for path in sorted(baseline.rglob("result.json")):
            run = path.parent.relative_to(baseline)
            problems += [f"{run}: {text}" for text in run_differences(baseline / run, runs / run)]
        return injected, problems

    def _start_sweep(self, runs: Path, overrides: Sequence[str], target: str) -> Outcome:
        """Start or continue a sweep. Kill its launcher alone ("launcher") or with its process tree
        ("tree"), interrupt its group as a terminal does ("group"), or let it finish ("")."""
        runs.parent.mkdir(parents=True, exist_ok=True)
        log = runs.with_suffix(".log")
        offset = log.stat().st_size if log.exists() else 0
        start = [sys.executable, "train.py", "-m", "hydra/launcher=local"]
        process = start_logged([*start, *COMMON, *overrides, f"runs_dir={runs}"], log, {})
        if not target:
            code = process.wait(timeout=TIMEOUT_S)
            problems = [f"the sweep ended with {code}"] if code else []
            return 0, problems + log_problems(log.read_bytes()[offset:].decode())
        # Runs continue if their launcher was killed alone. This launcher is up once it starts runs.
        for count in (_starts, _steps):
            before = count(runs)
            while process.poll() is None and count(runs) == before:
                time.sleep(0.05)
        time.sleep(self.rng.uniform(0, 5))
        if process.poll() is not None:
            return 0, log_problems(log.read_bytes()[offset:].decode())
        if target == "group":
            os.killpg(process.pid, INT)
        else:
            for pid in process_tree(process.pid) if target == "tree" else [process.pid]:
                os.kill(pid, KILL)
        code = process.wait(timeout=TIMEOUT_S)
        problems = [f"ended with {code}"] if target == "group" and code != os.EX_TEMPFAIL else []
        print(f"sweep: {target} at {_steps(runs)} steps of all runs", flush=True)
        return 1, problems + log_problems(log.read_bytes()[offset:].decode())

    # Long runs

    def epochs_200(self) -> Outcome:
        """200 epochs of one step each."""
        part = ("batch=8x2", "data.classes=2", "data.subset=0.1")
        long = ("norm=bn", *part, "trainer.epochs=200", "evaluate=false")
        plan = [("time", KILL), ("time", TERM), ("step", KILL), ("save", KILL)]
        return self._run(Experiment("epochs", long, forked=True), *plan)

    # Machines and users

    def clock(self) -> Outcome:
        """A clock that jumps by a day, forwards and backwards, three times a second."""
        library = self.folder / "clock.so"
        source = ROOT / "tests" / "resume" / "jumping_clock.c"
        build = ["cc", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"]
        subprocess.run(build, check=True)
        return self._machine("clock", environment=(("LD_PRELOAD", str(library)),))

    def umask(self) -> Outcome:
        return self._machine("umask", prefix=("sh", "-c", 'umask 077 && exec "$@"', "sh"))

    def path_unicode(self) -> Outcome:
        return self._machine("unicode", run_dir=self.folder / "läufe 实验 🙂" / "rün")

    def path_newline(self) -> Outcome:
        return self._machine("newline", run_dir=self.folder / "a\nb 'c' \"d\" $e" / "r\nun=1,2")

    def home_read_only(self) -> Outcome:
        return self._machine("home", prefix=READ_ONLY_HOME)

    def locale_c(self) -> Outcome:
        locale = (("LANG", "C"), ("LC_ALL", "C"))
        return self._machine("locale", environment=locale, run_dir=self.folder / "läufe" / "run")

    def terminal_dumb(self) -> Outcome:
        """A dumb terminal, on a pseudo-terminal."""
        spawn = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
        dumb = replace(
            SN, name="dumb", prefix=(sys.executable, "-c", spawn), environment=(("TERM", "dumb"),)
        )
        return self._run(dumb, ("save", KILL), ("evaluation", KILL))

    def no_proc(self) -> Outcome:
        """No /proc, from which PyTorch learns the processor's instruction sets."""
        return self._machine("no_proc", prefix=NO_PROC, other_numerics=True)

    def no_git(self) -> Outcome:
        """An empty PATH: no git, and no compiler, so other normalization kernels run."""
        empty = (("PATH", "/nowhere"),)
        return self._machine("no_git", environment=empty, other_numerics=True)

    def _machine(
        self,
        name: str,
        *,
        prefix: tuple[str, ...] = (),
        environment: tuple[tuple[str, str], ...] = (),
        run_dir: Path | None = None,
        other_numerics: bool = False,
    ) -> Outcome:
        """A run on an unusual machine: interrupted, killed twice, finished."""
        if prefix[:1] == ("unshare",) and subprocess.run([*prefix, "true"]).returncode:
            raise PermissionError("no permission to mount")
        experiment = replace(SN, name=name, prefix=prefix, environment=environment)
        plan = (("step", TERM), ("save", KILL), ("evaluation", KILL))
        return self._run(experiment, *plan, run_dir=run_dir, other_numerics=other_numerics)


CLASSES: dict[str, Callable[[Attack], Outcome]] = {
    name: method
    for name, method in vars(Attack).items()
    if callable(method) and not name.startswith("_")
}


def _total(outcomes: Iterable[Outcome]) -> Outcome:
    injected = 0
    problems: list[str] = []
    for count, texts in outcomes:
        injected += count
        problems += texts
    return injected, problems


def _starts(runs: Path) -> int:
    """How often local launchers have started runs."""
    return sum(path.read_bytes().count(b"# attempt ") for path in runs.rglob("log.txt"))


def _steps(runs: Path) -> int:
    """The sum of the last logged steps of all runs below a folder."""
    return sum(last_logged_step(path.parent) for path in runs.rglob("metrics.jsonl"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to add the classes to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults' times")
    parser.add_argument("--only", nargs="*", choices=CLASSES, default=list(CLASSES))
    args = parser.parse_args()
    table = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        attack = Attack(Path(folder), args.seed)
        for name in args.only:
            try:
                tried, problems = CLASSES[name](attack)
                table[name] = {"tried": tried, "lost": len(problems), "wrong": problems}
            except PermissionError as error:
                table[name] = {"not_run": str(error)}
            if args.out:
                args.out.write_text(json.dumps(table, indent=1) + "\n")
    for name, row in table.items():
        summary = row.get("not_run") or f"{row['tried']:4} tried, {row['lost']:2} lost"
        print(f"{name:20} {summary}")
    return int(any(row.get("lost") for row in table.values()))


if __name__ == "__main__":
    sys.exit(main())
