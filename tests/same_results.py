"""Check that two revisions give bitwise identical results, to verify a refactoring.

same_results.py BEFORE AFTER ['train.py norm=bn batch=8x2 data=digits' ...]

BEFORE and AFTER are checkouts, or revisions of this repository. Each command runs in both with this
Python and its own runs_dir. A command that starts with --nproc_per_node=2 runs under torchrun. A
command that starts with --interrupt gets SIGTERM in the middle of an epoch and is started again. By
default the golden set runs. All metrics.jsonl and result.json that a command writes are compared,
except times, the code's revision and the location of the runs. Exit code 0 if they are identical.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
INTERRUPTED = 75  # exit code of a training that saved a checkpoint after a signal
_DIGITS = (
    "data=digits model=resnet14_mini protocol=official_code tracker=none "
    "trainer.epochs=2 trainer.log_every=10"
)
_SWEEP = f"train.py -m hydra/launcher=local {_DIGITS}"
# Every norm with its own computation, in the smallest settings, with dropout: on one and on two
# processes, with several forward passes per step, and resumed within an epoch.
GOLDEN = (
    f"{_SWEEP} norm=bn,gn,sn,brn,sync_bn batch=8x2,8x1",
    f"{_SWEEP} norm=bn,gn,sn,brn,sync_bn batch=8x2,8x1 sweep.gpus_per_run=2",
    f"{_SWEEP} norm=bn,gn,sn,brn batch=8x2 trainer.replicas_per_pass=2",
    f"--interrupt train.py {_DIGITS} norm=sn batch=8x1",
)
# fmt: off
IGNORED = (
    "images_per_s", "data_wait_pct",  # of a row
    "training.wall_time_s", "training.images_per_s", "training.git_revisions.*",
    "training.compiled.*", "config.trainer.compile", "config.checkpoint.on_error",  # earlier
    "provenance.git_revision", "provenance.git_dirty", "provenance.written_at", "evaluations.*.at",
    "config.runs_dir", "config.run_dir",
    "*provenance.hardware.*", "config.norm.label",  # which earlier revisions do not record
)
# fmt: on
ABSENT = ...


def flatten(value: Any, key: str = "") -> dict[str, Any]:
    """Flatten a tree of dicts and lists to ``{"a.b.0": leaf}``; an empty dict or list is a leaf."""
    items: Any = enumerate(value) if isinstance(value, list) else getattr(value, "items", tuple)()
    leaves: dict[str, Any] = {}
    for name, inner in items:
        leaves |= flatten(inner, f"{key}.{name}" if key else str(name))
    return leaves or {key: value}


@contextmanager
def checkout(name: str) -> Iterator[Path]:
    """The folder ``name``, or a temporary worktree of the revision ``name``."""
    if Path(name).is_dir():
        yield Path(name)
        return
    git = ["git", "-C", str(REPOSITORY), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*git, "add", "--quiet", "--detach", folder, name], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run([*git, "remove", "--force", folder], check=True)


def results(checkout: Path, command: str) -> dict[str, Any]:
    """Run ``command`` in ``checkout``, interrupted once with --interrupt, and read its files."""
    interrupt, words = command.startswith("--interrupt "), shlex.split(command)
    words = words[interrupt:]
    if words[0].startswith("-"):
        words = ["-m", "torch.distributed.run", "--standalone", *words]
    with tempfile.TemporaryDirectory() as runs:
        line = [sys.executable, *words, f"runs_dir={runs}"]
        if interrupt:
            process = subprocess.Popen(line, cwd=checkout, stdout=subprocess.DEVNULL)
            while process.poll() is None and not any(Path(runs).rglob("metrics.jsonl")):
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            if process.wait() != INTERRUPTED:
                sys.exit(f"{command}: exit code {process.returncode}, expected {INTERRUPTED}")
        subprocess.run(line, cwd=checkout, check=True, stdout=subprocess.DEVNULL)
        return read_results(Path(runs))


def read_results(runs: Path, ignored: Sequence[str] = IGNORED) -> dict[str, Any]:
    """``{"file:line key": value}`` of the files in or below ``runs``."""
    values = {}
    for file in sorted(runs.rglob("*.json*")):
        if file.name in ("metrics.jsonl", "result.json"):
            text = file.read_text()
            rows = text.splitlines() if file.suffix == ".jsonl" else [text]
            for number, row in enumerate(rows):
                for key, value in flatten(json.loads(row)).items():
                    if not any(fnmatch.fnmatchcase(key, pattern) for pattern in ignored):
                        values[f"{file.relative_to(runs)}:{number + 1} {key}"] = value
    return values


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", help="a checkout or a revision")
    parser.add_argument("after", help="another checkout or revision")
    parser.add_argument("commands", nargs="*", help="a script and its overrides, in quotes")
    options = parser.parse_args()
    differing = 0
    with checkout(options.before) as before, checkout(options.after) as after:
        for command in options.commands or GOLDEN:
            differing += not same(command, results(before, command), results(after, command))
    return min(differing, 1)


def same(command: str, before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Print how many values of a command differ, and the first 20 of them."""
    # NaN is not equal to itself, so compare representations.
    keys = [
        key
        for key in before | after
        if repr(before.get(key, ABSENT)) != repr(after.get(key, ABSENT))
    ]
    print(f"{command}: {len(before)} values, {len(keys)} differ", flush=True)
    for key in keys[:20]:
        print(f"  {key}: {before.get(key, ABSENT)!r} -> {after.get(key, ABSENT)!r}")
    return bool(before) and not keys


if __name__ == "__main__":
    sys.exit(main())
