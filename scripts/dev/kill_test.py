"""Kill training runs with SIGKILL at random moments, start them again, compare bit for bit.

python scripts/dev/kill_test.py --kills 30      some ten minutes on one core

Several short runs on the digits are first trained undisturbed. Each is then trained again while it
is killed, in turn: at a random step, at a random time, and in the middle of writing a checkpoint;
the same command starts it again. In the end it must be the undisturbed run (disturbed.py). Exit
code 0 if it is.
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

from disturbed import Experiment, survives, undisturbed

EXPERIMENTS = (
    Experiment("sn", ("norm=sn", "batch=8x8")),
    Experiment("bn_dropout", ("norm=bn", "batch=8x8", "protocol=official_code")),
    Experiment("sn_passes", ("norm=sn", "batch=8x8", "trainer.replicas_per_pass=4")),
    Experiment("sn_two_processes", ("norm=sn", "batch=8x8"), processes=2),
)


def torture(folder: Path, experiments: Sequence[Experiment], kills: int, seed: int) -> int:
    """Kill each experiment's run ``kills / len(experiments)`` times; returns how many differ."""
    chance = random.Random(seed)
    moments = itertools.cycle(("step", "time", "save"))
    killed = differ = 0
    for index, experiment in enumerate(experiments):
        like = undisturbed(experiment, folder / experiment.name)
        wanted = kills * (index + 1) // len(experiments) - kills * index // len(experiments)
        plan = [(moment, signal.SIGKILL) for moment in itertools.islice(moments, wanted)]
        run_dir = folder / f"{experiment.name}_killed"
        came, wrong = survives(experiment, like, run_dir, plan, chance)
        killed += came
        differ += bool(wrong)
    print(f"{killed} kills; {differ} runs differ from the undisturbed one")
    return differ


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
