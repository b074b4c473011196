"""Whether two checkouts come to the same results, to the last digit: the check of a refactor.

same_results.py BEFORE AFTER 'train.py norm=bn batch=8x2 data=digits' ...

Each command runs in both checkouts, with this Python and a runs_dir of its own; begin it with
--nproc_per_node=2 to have it run by torchrun. Compared are all metrics.jsonl and result.json that
it leaves, but for times, the code's revision and where the runs lie. Exit code 0: the same.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# fmt: off
IGNORED = (
    "images_per_s", "data_wait_pct",  # of a row
    "training.wall_time_s", "training.images_per_s", "training.git_revisions.*",
    "training.compiled.*",
    "provenance.git_revision", "provenance.git_dirty", "provenance.written_at", "evaluations.*.at",
    "config.runs_dir", "config.run_dir",
)
# fmt: on
ABSENT = ...


def flattened(value: Any, key: str = "") -> dict[str, Any]:
    """``{"a.b.0": leaf}`` of a tree of dicts and lists; an empty one is a leaf."""
    items: Any = enumerate(value) if isinstance(value, list) else getattr(value, "items", tuple)()
    leaves: dict[str, Any] = {}
    for name, inner in items:
        leaves |= flattened(inner, f"{key}.{name}" if key else str(name))
    return leaves or {key: value}


def results(checkout: Path, command: str, ignored: list[str]) -> dict[str, Any]:
    """``{"file:line key": value}`` of all that ``command`` leaves when it runs in ``checkout``."""
    found = {}
    with tempfile.TemporaryDirectory() as runs:
        words = shlex.split(command)
        if words[0].startswith("-"):
            words = ["-m", "torch.distributed.run", "--standalone", *words]
        subprocess.run(
            [sys.executable, *words, f"runs_dir={runs}"],
            cwd=checkout,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for file in sorted(Path(runs).rglob("*.json*")):
            if file.name in ("metrics.jsonl", "result.json"):
                text = file.read_text()
                rows = text.splitlines() if file.suffix == ".jsonl" else [text]
                for number, row in enumerate(rows):
                    for key, value in flattened(json.loads(row)).items():
                        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in ignored):
                            found[f"{file.relative_to(runs)}:{number + 1} {key}"] = value
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another")
    parser.add_argument("commands", nargs="+", help="a script and its overrides, in quotes")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="KEY",
        help="another key, a pattern such as config.*",
    )
    asked = parser.parse_args()
    differing = 0
    for command in asked.commands:
        before, after = (
            results(checkout, command, [*IGNORED, *asked.ignore])
            for checkout in (asked.before, asked.after)
        )
        # Of NaN, which is not equal to itself, the words are compared.
        keys = [
            key
            for key in before | after
            if repr(before.get(key, ABSENT)) != repr(after.get(key, ABSENT))
        ]
        print(f"{command}: {len(before)} values, {len(keys)} differ", flush=True)
        for key in keys[:20]:
            print(f"  {key}: {before.get(key, ABSENT)!r} -> {after.get(key, ABSENT)!r}")
        differing += bool(keys) or not before
    return min(differing, 1)


if __name__ == "__main__":
    sys.exit(main())
