"""Kill training runs with SIGKILL at random triggers, start them again, compare bit for bit.

python scripts/dev/kill_test.py --kills 30      some ten minutes on one core

Several short runs on the digits are first trained without kills. Each is then trained again and
killed, in turn, at a random step, at a random time, and while it writes a checkpoint; the same
command resumes it. The result must equal the uninterrupted run's (fault_injection.py). Exit code 0
if all do.
"""

from __future__ import annotations

import argparse
import itertools
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fault_injection import Experiment, run_with_faults, train_reference

EXPERIMENTS = (
    Experiment("sn", ("norm=sn", "batch=8x8")),
    Experiment("bn_dropout", ("norm=bn", "batch=8x8", "protocol=official_code")),
    Experiment("sn_passes", ("norm=sn", "batch=8x8", "trainer.replicas_per_pass=4")),
    Experiment("sn_two_processes", ("norm=sn", "batch=8x8"), processes=2),
)


def kill_runs(folder: Path, experiments: Sequence[Experiment], kills: int, seed: int) -> int:
    """Kill each experiment's run ``kills / len(experiments)`` times; return how many differ."""
    rng = random.Random(seed)
    triggers = itertools.cycle(("step", "time", "save"))
    killed = differ = 0
    for index, experiment in enumerate(experiments):
        reference = train_reference(experiment, folder / experiment.name)
        share = kills * (index + 1) // len(experiments) - kills * index // len(experiments)
        plan = [(trigger, signal.SIGKILL) for trigger in itertools.islice(triggers, share)]
        run_dir = folder / f"{experiment.name}_killed"
        injected, problems = run_with_faults(experiment, reference, run_dir, plan, rng)
        killed += injected
        differ += bool(problems)
    print(f"{killed} kills; {differ} runs differ from the uninterrupted one")
    return differ


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="seed of the kills' times")
    parser.add_argument("--only", nargs="*", default=[e.name for e in EXPERIMENTS])
    args = parser.parse_args()
    chosen = [e for e in EXPERIMENTS if e.name in args.only]
    with tempfile.TemporaryDirectory() as folder:
        return int(kill_runs(Path(folder), chosen, args.kills, args.seed) > 0)


if __name__ == "__main__":
    sys.exit(main())
