"""Kill training runs with SIGKILL at random moments, start them again, compare bit for bit.

python scripts/dev/kill_test.py --kills 30      some ten minutes on one core

Several short runs on the digits are first trained undisturbed. Each is then trained again while it
is killed, in turn: at a random step, at a random time, and in the middle of writing a checkpoint;
the same command starts it again. In the end its weights, optimiser, metrics and result must be
those of the undisturbed run; rates (images/s, seconds) alone may differ. Exit code 0 if they are.
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
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sn_imagenet.sweeps.pool import family

ROOT = Path(__file__).resolve().parents[2]
COMMON = ["data=digits", "model=resnet14_mini", "trainer.epochs=3", "trainer.log_every=4"]
# A checkpoint every 0.2 s, so that some kills meet one being written.
COMMON += ["checkpoint.minutes=0.0033", "calibration.samples=256"]
MOMENTS = ("step", "time", "save")
RATES = ("images_per_s", "data_wait_pct")


@dataclass(frozen=True)
class Experiment:
    """What is trained: a name for its folder, overrides, processes."""

    name: str
    overrides: tuple[str, ...]
    processes: int = 1

    def command(self, run_dir: Path) -> list[str]:
        start = [sys.executable]
        if self.processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone"]
            start += [f"--nproc_per_node={self.processes}"]
        return [*start, str(ROOT / "train.py"), *COMMON, *self.overrides, f"run_dir={run_dir}"]


EXPERIMENTS = (
    Experiment("sn", ("norm=sn", "batch=8x8")),
    Experiment("bn_dropout", ("norm=bn", "batch=8x8", "protocol=official_code")),
    Experiment("sn_passes", ("norm=sn", "batch=8x8", "trainer.replicas_per_pass=4")),
    Experiment("sn_two_processes", ("norm=sn", "batch=8x8"), processes=2),
)


def start(experiment: Experiment, run_dir: Path) -> subprocess.Popen[bytes]:
    """Start or continue a run, in a process group of its own."""
    with open(run_dir.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            experiment.command(run_dir),
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(experiment: Experiment, run_dir: Path) -> float:
    """Let a run go to its end; returns the seconds that it trained."""
    code = start(experiment, run_dir).wait(timeout=1800)
    if code:
        log = run_dir.with_suffix(".log").read_text()
        raise SystemExit(f"{experiment.name} ended with {code}:\n{log[-4000:]}")
    return float(json.loads((run_dir / "result.json").read_text())["training"]["wall_time_s"])


def reached(run_dir: Path) -> int:
    """The last step in the metrics."""
    try:
        lines = (run_dir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return max((json.loads(line)["step"] for line in lines), default=0)


def kill(
    experiment: Experiment, run_dir: Path, moment: str, chance: random.Random, seconds: float
) -> bool:
    """Start the run and kill it, all of its processes at once, at a moment of the kind wanted.

    Returns:
        Whether it was killed; it may have ended before.
    """
    process = start(experiment, run_dir)
    before = reached(run_dir)
    threshold = before + chance.randint(1, 20)
    saves = chance.randint(1, 6)
    delay = chance.uniform(0, seconds / 3)
    running_since = None
    newest = run_dir / "newest.pt"
    seen = False
    while process.poll() is None:
        if running_since is None and (run_dir / "lock.json").exists():
            running_since = time.monotonic()
        if moment == "save":
            now = newest.exists()
            saves -= now and not seen
            seen = now
            due = now and saves <= 0
        elif moment == "step":
            due = reached(run_dir) >= threshold
        else:
            due = running_since is not None and time.monotonic() - running_since >= delay
        if due:
            for pid in family(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            return process.returncode == -signal.SIGKILL
        time.sleep(0 if moment == "save" and running_since is not None else 0.005)
    return False


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
        result["training"] = {k: result["training"][k] for k in ("steps", "samples", "epochs")}
    for key in ("status", "evaluations", "importance_weights", "training", "departures"):
        if results[0][key] != results[1][key]:
            found.append(f"result.json: {key}")
    return found


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


def torture(folder: Path, experiments: Sequence[Experiment], kills: int, seed: int) -> int:
    """Kill each experiment's run ``kills / len(experiments)`` times; returns how many were lost."""
    chance = random.Random(seed)
    moments = itertools.cycle(MOMENTS)
    done: Counter[str] = Counter()
    lost = 0
    for index, experiment in enumerate(experiments):
        undisturbed, disturbed = folder / experiment.name, folder / f"{experiment.name}_killed"
        seconds = finish(experiment, undisturbed)
        wanted = kills * (index + 1) // len(experiments) - kills * index // len(experiments)
        runs = itertools.count()
        here = 0
        while here < wanted:
            if (disturbed / "result.json").exists():
                # It got to its end in spite of all: compare it, and go on with another.
                lost += _compare(undisturbed, disturbed)
                disturbed = folder / f"{experiment.name}_killed{next(runs)}"
            moment = next(moments)
            if kill(experiment, disturbed, moment, chance, seconds):
                here += 1
                done[moment] += 1
                where = reached(disturbed)
                print(f"{experiment.name}: killed ({moment}) at step >= {where}", flush=True)
        finish(experiment, disturbed)
        lost += _compare(undisturbed, disturbed)
    kinds = ", ".join(f"{done[moment]} at a {moment}" for moment in MOMENTS)
    print(f"{sum(done.values())} kills ({kinds}); {lost} runs differ from the undisturbed one")
    return lost


def _compare(undisturbed: Path, disturbed: Path) -> bool:
    found = differences(undisturbed, disturbed)
    starts = json.loads((disturbed / "result.json").read_text())["training"]["world_sizes"]
    print(f"{disturbed.name}: {len(starts)} starts, {'; '.join(found) or 'the same'}", flush=True)
    return bool(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", nargs="*", default=[e.name for e in EXPERIMENTS])
    args = parser.parse_args()
    chosen = [e for e in EXPERIMENTS if e.name in args.only]
    with tempfile.TemporaryDirectory() as folder:
        return int(torture(Path(folder), chosen, args.kills, args.seed) > 0)


if __name__ == "__main__":
    sys.exit(main())
