"""Attack training in every way that a machine, its user or its administrator may, and count losses.

python scripts/dev/attack.py --out attack.json            all classes; hours on one core
python scripts/dev/attack.py --only kills_norms umask     some; added to what the file holds

Each class disturbs short runs on the digits and lets the same command bring them to their end. Lost
is a run that differs from the undisturbed one (disturbed.py), one that did not go on from its
newest checkpoint, one that needed help, and one that showed a traceback. Exit code 0: none is.
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

from disturbed import (
    COMMON,
    ROOT,
    TIMEOUT_S,
    Experiment,
    Undisturbed,
    differences,
    reached,
    start_logged,
    survives,
    undisturbed,
    wrong_words,
)

from sn_imagenet.sweeps.pool import process_tree

Found = tuple[int, list[str]]  # moments that came, what was wrong
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
HUP, USR1 = signal.SIGHUP, signal.SIGUSR1
# Whoever starts this in the background may ignore them; the runs would inherit that.
for _number in (TERM, INT, HUP, USR1):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)
NORMS = ("bn", "gn", "in", "ln", "sn", "brn", "sync_bn", "frozen_bn")
SMALL = ("batch=8x2", "data.classes=5", "data.subset=0.5")  # 21 steps an epoch
SN = Experiment("sn", ("norm=sn", *SMALL))
WARM = replace(SN, forked=True)
SHORT = replace(WARM, overrides=(*SN.overrides, "trainer.epochs=1"))
# Before a command, what changes the machine for it alone; it needs the right to mount.
MOUNTED = ("unshare", "--mount", "sh", "-c")
NO_PROC = (*MOUNTED, 'mount -t tmpfs -o ro tmpfs /proc && exec "$@"', "sh")
READ_ONLY_HOME = (
    *MOUNTED,
    'mount --bind "$HOME" "$HOME" && mount -o remount,bind,ro "$HOME" && exec "$@"',
    "sh",
)


class Attack:
    """The classes of an attack, and where its runs lie."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.number = itertools.count()
        self.like = cache(self._alone)

    def _alone(self, experiment: Experiment) -> Undisturbed:
        return undisturbed(experiment, self.folder / "undisturbed" / str(next(self.number)))

    def disturbed(
        self,
        experiment: Experiment,
        *plan: tuple[str, signal.Signals],
        place: Path | None = None,
        computes_otherwise: bool = False,
    ) -> Found:
        """One run, disturbed at each moment of the plan, against one that is left alone.

        ``computes_otherwise``: on such a machine even that one has other numbers than on this.
        """
        alone = replace(experiment, name="undisturbed")
        if not computes_otherwise:
            alone = replace(alone, before=(), environment=())
        like = self.like(alone)
        run_dir = place or self.folder / "disturbed" / experiment.name
        return survives(experiment, like, run_dir, plan, self.chance)

    # Kills, by phase, method and placement

    def kills_start(self) -> Found:
        return self.disturbed(replace(SN, name="start"), *[("start", KILL)] * 8)

    def kills_training(self) -> Found:
        plan = [("time", KILL), ("step", KILL), ("step", KILL)] * 4
        return self.disturbed(replace(WARM, name="training"), *plan)

    def kills_save(self) -> Found:
        return self.disturbed(replace(WARM, name="save"), *[("save", KILL)] * 12)

    def kills_evaluation(self) -> Found:
        return self.disturbed(replace(SHORT, name="evaluation"), *[("evaluation", KILL)] * 10)

    def kills_result(self) -> Found:
        return self.disturbed(replace(SHORT, name="result"), *[("result", KILL)] * 6)

    def kills_figures(self) -> Found:
        return self.disturbed(replace(SHORT, name="figures"), *[("figures", KILL)] * 6)

    def kills_norms(self) -> Found:
        plan = (("step", KILL), ("save", KILL), ("time", KILL), ("evaluation", KILL))
        return _all(
            self.disturbed(replace(WARM, name=f"norm_{norm}", overrides=overrides), *plan)
            for norm in NORMS
            for overrides in [(f"norm={norm}", *SMALL)]
        )

    def kills_torchrun(self) -> Found:
        plan = (("step", KILL), ("save", KILL), ("time", KILL), ("evaluation", KILL))
        return self.disturbed(replace(SN, name="torchrun", processes=2), *plan)

    def kills_workers(self) -> Found:
        plan = (("step", KILL), ("save", KILL), ("evaluation", KILL))
        workers = Experiment("workers", ("norm=bn", *SMALL, "data.workers=2"))
        return self.disturbed(workers, *plan)

    # Signals

    def signals_training(self) -> Found:
        plan = [(when, number) for when in ("step", "evaluation") for number in (TERM, INT, HUP)]
        return self.disturbed(replace(WARM, name="signals"), *plan, ("save", USR1))

    def signals_imports(self) -> Found:
        plan = [("start", number) for number in (TERM, INT, HUP, USR1)] * 2
        return self.disturbed(replace(SN, name="imports"), *plan)

    # Sweeps

    def launcher(self) -> Found:
        """The local launcher: killed alone, with its cells, told by Ctrl-C to its whole group."""
        words = ("norm=bn,gn,sn", *SMALL, "seed=0,1", "sweep.slots=2")
        return self._swept("launcher", words, ["alone", "family", "group"] * 2)

    def sweep_of_30(self) -> Found:
        """30 cells of two steps; the launcher dies twice with all that it started."""
        words = ("norm=bn,gn,sn", *SMALL, "trainer.max_steps=2", "seed=range(10)")
        return self._swept("thirty", words, ["family", "family"])

    def _swept(self, name: str, words: tuple[str, ...], whom: Sequence[str]) -> Found:
        """A local sweep that is disturbed, against one that is carried out in one process."""
        alone, runs = (self.folder / name / kind for kind in ("undisturbed", "runs"))
        log = alone.with_suffix(".log")
        log.parent.mkdir(parents=True)
        command = [sys.executable, "train.py", "-m", *COMMON, *words, f"runs_dir={alone}"]
        if start_logged(command, log, {}).wait(timeout=TIMEOUT_S):
            return 0, [f"the undisturbed sweep failed: {log.read_text()[-500:]}"]
        came, wrong = _all(self._sweep(runs, words, one) for one in [*whom, ""])
        for cell in sorted(path.parent.relative_to(alone) for path in alone.rglob("result.json")):
            wrong += [f"{cell}: {one}" for one in differences(alone / cell, runs / cell)]
        return came, wrong

    def _sweep(self, runs: Path, words: Sequence[str], whom: str) -> Found:
        """Start or continue a sweep, and kill its launcher alone or with its family, or interrupt
        its group as a terminal does; or, for nobody, let it end."""
        runs.parent.mkdir(parents=True, exist_ok=True)
        log = runs.with_suffix(".log")
        said = log.stat().st_size if log.exists() else 0
        start = [sys.executable, "train.py", "-m", "hydra/launcher=local"]
        process = start_logged([*start, *COMMON, *words, f"runs_dir={runs}"], log, {})
        if not whom:
            code = process.wait(timeout=TIMEOUT_S)
            wrong = [f"the sweep ended with {code}"] if code else []
            return 0, wrong + wrong_words(log.read_bytes()[said:].decode())
        # Cells whose launcher was killed alone go on: that this one works, its own starts tell.
        for count in (_starts, _steps):
            before = count(runs)
            while process.poll() is None and count(runs) == before:
                time.sleep(0.05)
        time.sleep(self.chance.uniform(0, 5))
        if process.poll() is not None:
            return 0, wrong_words(log.read_bytes()[said:].decode())
        if whom == "group":
            os.killpg(process.pid, INT)
        else:
            for pid in process_tree(process.pid) if whom == "family" else [process.pid]:
                os.kill(pid, KILL)
        code = process.wait(timeout=TIMEOUT_S)
        wrong = [f"ended with {code}"] if whom == "group" and code != os.EX_TEMPFAIL else []
        print(f"sweep: {whom} at {_steps(runs)} steps of all", flush=True)
        return 1, wrong + wrong_words(log.read_bytes()[said:].decode())

    # Long runs

    def epochs_200(self) -> Found:
        """Of one step each."""
        part = ("batch=8x2", "data.classes=2", "data.subset=0.1")
        long = ("norm=bn", *part, "trainer.epochs=200", "evaluate=false")
        plan = [("time", KILL), ("time", TERM), ("step", KILL), ("save", KILL)]
        return self.disturbed(Experiment("epochs", long, forked=True), *plan)

    # Machines and users

    def clock(self) -> Found:
        """That jumps by a day, forwards and backwards, three times a second."""
        library = self.folder / "clock.so"
        source = ROOT / "tests" / "resume" / "jumping_clock.c"
        build = ["cc", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"]
        subprocess.run(build, check=True)
        return self._machine("clock", environment=(("LD_PRELOAD", str(library)),))

    def umask(self) -> Found:
        return self._machine("umask", before=("sh", "-c", 'umask 077 && exec "$@"', "sh"))

    def path_unicode(self) -> Found:
        return self._machine("unicode", place=self.folder / "läufe 实验 🙂" / "rün")

    def path_newline(self) -> Found:
        return self._machine("newline", place=self.folder / "a\nb 'c' \"d\" $e" / "r\nun=1,2")

    def home_read_only(self) -> Found:
        return self._machine("home", before=READ_ONLY_HOME)

    def locale_c(self) -> Found:
        words = (("LANG", "C"), ("LC_ALL", "C"))
        return self._machine("locale", environment=words, place=self.folder / "läufe" / "run")

    def terminal_dumb(self) -> Found:
        """On a terminal of its own."""
        spawn = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
        dumb = replace(
            SN, name="dumb", before=(sys.executable, "-c", spawn), environment=(("TERM", "dumb"),)
        )
        return self.disturbed(dumb, ("save", KILL), ("evaluation", KILL))

    def no_proc(self) -> Found:
        """From which PyTorch learns what the processor can."""
        return self._machine("no_proc", before=NO_PROC, computes_otherwise=True)

    def no_git(self) -> Found:
        """Nor a compiler, without which other passes serve, nor anything else."""
        nothing = (("PATH", "/nowhere"),)
        return self._machine("no_git", environment=nothing, computes_otherwise=True)

    def _machine(
        self,
        name: str,
        *,
        before: tuple[str, ...] = (),
        environment: tuple[tuple[str, str], ...] = (),
        place: Path | None = None,
        computes_otherwise: bool = False,
    ) -> Found:
        """A run on an odd machine: stopped, killed, brought to its end."""
        if before[:1] == ("unshare",) and subprocess.run([*before, "true"]).returncode:
            raise PermissionError("mounting is not allowed here")
        experiment = replace(SN, name=name, before=before, environment=environment)
        plan = (("step", TERM), ("save", KILL), ("evaluation", KILL))
        return self.disturbed(experiment, *plan, place=place, computes_otherwise=computes_otherwise)


CLASSES: dict[str, Callable[[Attack], Found]] = {
    name: method
    for name, method in vars(Attack).items()
    if callable(method) and not name.startswith("_") and name != "disturbed"
}


def _all(founds: Iterable[Found]) -> Found:
    came = 0
    wrong: list[str] = []
    for moments, found in founds:
        came += moments
        wrong += found
    return came, wrong


def _starts(runs: Path) -> int:
    """Of cells by local launchers."""
    return sum(path.read_bytes().count(b"# attempt ") for path in runs.rglob("log.txt"))


def _steps(runs: Path) -> int:
    """Of all runs below a folder."""
    return sum(reached(path.parent) for path in runs.rglob("metrics.jsonl"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a JSON file, to which the classes are added")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", nargs="*", choices=CLASSES, default=list(CLASSES))
    args = parser.parse_args()
    table = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        attack = Attack(Path(folder), args.seed)
        for name in args.only:
            try:
                tried, wrong = CLASSES[name](attack)
                table[name] = {"tried": tried, "lost": len(wrong), "wrong": wrong}
            except PermissionError as error:
                table[name] = {"not_run": str(error)}
            if args.out:
                args.out.write_text(json.dumps(table, indent=1) + "\n")
    for name, row in table.items():
        told = row.get("not_run") or f"{row['tried']:4} tried, {row['lost']:2} lost"
        print(f"{name:20} {told}")
    return int(any(row.get("lost") for row in table.values()))


if __name__ == "__main__":
    sys.exit(main())
