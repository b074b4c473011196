"""The main job on embedded real images: train nine cells of Table 2, tabulate and plot them.

make demo          BN, GN and SN at (8,8), (8,2) and (8,1) on handwritten digits, two at a time
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NORMS = ("bn", "gn", "sn")
SETTINGS = ("8x1", "8x2", "8x8")  # the longest first, so that both lanes end together
SLOTS = 2


def train(cell: tuple[str, str], runs: Path, epochs: int) -> None:
    """One cell, as a user types it; its own output goes to a file beside the runs."""
    setting, norm = cell
    command = ["train.py", f"norm={norm}", f"batch={setting}", "data=digits"]
    command += ["model=resnet50_mini", f"trainer.epochs={epochs}", f"runs_dir={runs}"]
    log = runs / f"{norm}_{setting}.log"
    start = time.perf_counter()
    with open(log, "w") as file:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise SystemExit(f"python {' '.join(command)} failed:\n{log.read_text()}")
    print(f"{time.perf_counter() - start:4.0f} s  python {' '.join(command)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "demo")
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    out: Path = args.out.resolve()
    runs = out / "runs"
    runs.mkdir(parents=True, exist_ok=True)

    print(f"Training nine cells, {SLOTS} at a time; each is one command:", flush=True)
    cells = list(itertools.product(SETTINGS, NORMS))
    with ThreadPoolExecutor(SLOTS) as pool:
        list(pool.map(lambda cell: train(cell, runs, args.epochs), cells))

    for script, options in (("make_tables", ["--settings", "8x8,8x2,8x1"]), ("make_figures", [])):
        command = [f"scripts/{script}.py", "--runs", str(runs), "--out", str(out), *options]
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
