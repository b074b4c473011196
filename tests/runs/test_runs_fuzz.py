"""Damaged run directories: the other runs are still read, and nothing ends in a traceback."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_files import REPOSITORY, config, result, write_run

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.claims_report import claim_entry, judge_claims
from sn_imagenet.reporting.figures.files import seeds_with_weights
from sn_imagenet.reporting.figures.weights import figure4
from sn_imagenet.reporting.page import describe_run
from sn_imagenet.reporting.paper import read_paper
from sn_imagenet.reporting.study import RunCollection, studies_of
from sn_imagenet.reporting.table2 import table2
from sn_imagenet.runs import (
    FINISHED,
    UNREADABLE,
    RunDirectory,
    find_runs,
    progress_of,
    read_progress,
)
from sn_imagenet.runs.lock import is_held
from sn_imagenet.runs.metrics import last_rows
from sn_imagenet.sweeps.board import RunStatus, table

PAPER = read_paper(REPOSITORY / "results" / "paper.yaml")
DEEP = "[" * 100_000
WEIRD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**62, 10**400, -1e308, 1e-320, float("inf"), float("nan"), "", " ", "\n"),
    *(
        "bn",
        "\ud800",
        "\x1b[31m",
        [],
        [[]],
        [1, "a", None],
        {},
        {"": {}},
        {"a": {"b": 1}},
        "x" * 9999,
    ),
)
METRICS = "".join(
    json.dumps(row) + "\n"
    for epoch in (1, 2)
    for row in (
        {"kind": "train", "epoch": epoch, "step": 9 * epoch, "loss": 0.5, "images_per_s": 40.0},
        {"kind": "epoch", "epoch": epoch, "epochs": 10, "step": 9 * epoch, "val": {"top1": 8.0}},
    )
)
LOCK = {"host": "there", "pid": 7, "started": "then"}


def tree_entries(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (container, key) of a tree."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from tree_entries(tree[key])


def mutated_tree(tree: Any, rng: random.Random) -> Any:
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2))):
        container, key = rng.choice(list(tree_entries(tree)))
        if rng.random() < 0.25:
            del container[key]
        else:
            container[key] = copy.deepcopy(rng.choice(WEIRD))
        if not tree:
            break
    return tree


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 3, 30))):
        start = rng.randrange(len(damaged))
        damaged[start : start + rng.choice((0, 1, 40))] = rng.choice(
            (b"", b"\0", b"\xff", b"\n", b"{", b"]", b'"', b"1e999", b"*a", b"&a ", b"${a}", b"- ")
        )
        damaged = damaged or bytearray(b"\n")
    return bytes(damaged)


def mutated(tree: Any, text: Callable[[Any], str], rng: random.Random) -> bytes:
    if rng.random() < 0.4:
        return mutated_bytes(text(tree).encode(), rng)
    return text(mutated_tree(tree, rng)).encode("utf-8", errors="surrogatepass")


def as_json(tree: Any) -> str:
    return json.dumps(tree)


def as_lines(rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


GOOD, VICTIM = config(seed=0), config("sn", seed=1)
FILES: dict[str, tuple[Any, Callable[[Any], str], Callable[[RunDirectory], object], int]] = {
    "result.json": (result(VICTIM, 80.0), as_json, RunDirectory.read_result, 500),
    "metrics.jsonl": (
        [json.loads(row) for row in METRICS.splitlines()],
        as_lines,
        lambda directory: last_rows(directory.metrics),
        1500,
    ),
    "lock.json": (LOCK, as_json, lambda directory: is_held(directory.lock), 1000),
    "config.yaml": (VICTIM, as_json, RunDirectory.read_config, 50),  # JSON is YAML
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_never_hides_the_others(tmp_path: Path, name: str) -> None:
    """Replace bytes and values at random, with a fixed seed. Each trial reads the damaged file, and
    every fiftieth trial uses all functions that read runs."""
    write_run(tmp_path, GOOD, result(GOOD, 90.0))
    victim = write_run(tmp_path, VICTIM, metrics=METRICS)
    tree, text, read, trials = FILES[name]
    rng = random.Random(name)
    states: Counter[str] = Counter()
    for trial in range(trials):
        content = mutated(tree, text, rng)
        (victim / name).write_bytes(content)
        try:
            read(RunDirectory(victim))
            states["read"] += 1
        except UserError:
            states["refused"] += 1
        if trial % 50 == 0:
            read_everything(tmp_path, victim)
    assert states["read"] > trials // 20, states
    assert name == "lock.json" or states["refused"] > trials // 20, states


def read_everything(root: Path, victim: Path) -> str:
    """Use all functions that read runs; return the state of the damaged run."""
    runs, warnings = find_runs(root)
    rows = [RunStatus(str(run.path), run.state, progress_of(run)) for run in runs]
    "\n".join([*table(rows), *warnings]).encode()
    progress = read_progress(victim)
    assert progress is not None
    others = [run for run in runs if run.path != victim]
    assert [run.state for run in others] == [FINISHED] and others[0].score_value() == 90.0
    assert len(runs) == 2 or warnings
    collection = RunCollection(runs, root, PAPER)
    document = table2(collection)
    (document.markdown + document.latex + document.csv).encode()
    for group in judge_claims(collection):
        json.dumps([claim_entry(one) for one in group.judged], allow_nan=False).encode()
    for run, folder in zip(runs, collection.folders(runs), strict=True):
        json.dumps({**describe_run(run, folder, None, []), "run": None}).encode()
    for study in studies_of(collection):
        for method in study.methods:
            if seeds := seeds_with_weights(study, method, []):
                figure4(seeds)
    return progress.state


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "a0: lol\n" + "".join(f"a{i + 1}: ${{a{i}}}${{a{i}}}\n" for i in range(40))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", BOMB),
        ("config.yaml", CHAIN),
        ("config.yaml", DEEP),
        ("config.yaml", "norm: " + "{a: " * 500),
        ("result.json", DEEP),
        ("result.json", '{"version": 2, "status": "failed", "error": "\\ud800"}'),
        ("result.json", '{"version": 1e999}'),
        ("metrics.jsonl", METRICS + '{"kind": "epoch", "epoch": 3, "epochs": 10, "val": "8"}\n'),
        ("metrics.jsonl", METRICS + '{"kind": "train", "step": 1e999, "images_per_s": 2}\n'),
        ("metrics.jsonl", METRICS + DEEP + "\n"),
        ("metrics.jsonl", METRICS + '{"kind": ["train"]}\n'),
    ],
    ids=range(11),
)
def test_content_that_no_run_writes_is_unreadable(tmp_path: Path, name: str, content: str) -> None:
    write_run(tmp_path, GOOD, result(GOOD, 90.0))
    victim = write_run(tmp_path, VICTIM, metrics=METRICS)
    (victim / name).write_text(content)
    assert read_everything(tmp_path, victim) == UNREADABLE
    (warning,) = find_runs(tmp_path).warnings
    assert str(victim / name) in warning
