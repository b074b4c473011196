"""Whether runs of the same config and seed agree: bit for bit, within rounding, or within the
spread of seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import variance
from typing import Any

import scipy

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.cells import (
    MISSING,
    cell_label,
    experiment,
    interval_text,
    minus,
    score_text,
    signed_text,
    statistics_label,
)
from sn_imagenet.reporting.curves import metrics_lines
from sn_imagenet.reporting.render import decimals, markdown_table, plain
from sn_imagenet.reporting.statistics import LEVEL, contrast
from sn_imagenet.runs import Run, find_runs, flatten_config
from sn_imagenet.runs.reading import mapping, parse_json

BITS, ROUNDING = "bit for bit", "within rounding"
SPREAD, BEYOND = "within the spread of seeds", "beyond the spread of seeds"
UNKNOWN = "no; the spread of seeds is not known"
ROUNDING_TOLERANCE = 1e-3  # of each number, relative to its size
# Entries that measure time or memory, or that say when and by whom an evaluation was made.
_NOT_RESULTS = {"images_per_s", "data_wait_pct", "seconds", "memory", "at", "by", "provenance"}
# What decides the digits of a result, in its provenance.
_CAUSES = ("git_revision", "versions.", "hardware.", "norm_backend", "world_size", "compiled")
Pair = tuple[Run, Run]


def compare_runs(first: Path, second: Path) -> tuple[str, bool]:
    """Compare the runs that two folders have in common: those with the same config and seed, or the
    only run of each.

    Returns:
        A table with a row for each pair, the mean difference of each cell with several seeds, and
        what differs in the provenance; and whether no pair is beyond the spread of seeds.

    Raises:
        UserError: a folder has no runs, they have none in common, or a file cannot be read.
    """
    folders = (first, second)
    sides = [{_key(run, folder): run for run in find_runs(folder).runs} for folder in folders]
    pairs = [(run, sides[1][key]) for key, run in sides[0].items() if key in sides[1]]
    if all(len(side) == 1 for side in sides):
        pairs = [(next(iter(sides[0].values())), next(iter(sides[1].values())))]
    if not pairs:
        raise UserError(f"{first} and {second} have no run of the same config and seed")
    cells: dict[Any, list[Pair]] = {}
    for pair in pairs:
        cells.setdefault(_key(pair[0], first)[:-1], []).append(pair)
    rows, means = [], []
    for group in cells.values():
        (run, _), scores = group[0], [_scores(group, side) for side in (1, 0)]
        name = f"{cell_label(run.cell)} {run.cell.setting}, {run.cell.model}"
        bound, digits = _bound(scores), decimals([*scores[0], *scores[1]], run.score.unit)
        rows += [[f"{name}, seed {pair[0].seed}", *_row(pair, bound, digits)] for pair in group]
        estimate = contrast(scores, [1.0, -1.0])
        if estimate and estimate.interval:
            interval = interval_text(estimate.interval, digits, "+")
            means.append(f"{plain(name)}: mean {signed_text(estimate.effect, digits)} {interval}")
    head = ["run", "first", "second", "difference", "agree", "largest relative", "since"]
    parts = [markdown_table(head, rows, "lrrrlrl"), "\n".join(means)]
    if alone := len(sides[0]) + len(sides[1]) - 2 * len(pairs):
        parts.append(f"Runs in one folder only: {alone}.")
    parts.append(_causes(pairs))
    return "\n\n".join(filter(None, parts)), all(row[4] != BEYOND for row in rows)


def _key(run: Run, folder: Path) -> tuple[Any, ...]:
    """What two runs that should agree share; each may start from a run of its own ``folder``."""
    values = {key: value.replace(f'"{folder}/', '"') for key, value in experiment(run).items()}
    return run.cell, tuple(sorted(values.items())), run.seed


def _scores(group: Sequence[Pair], side: int) -> list[float]:
    return [score for pair in group if (score := pair[side].score_value()) is not None]


def _bound(scores: Sequence[Sequence[float]]) -> float | None:
    """The difference that two seeds of a cell exceed in 5 % of cases, from the ``scores`` of seeds
    in each folder; None without two seeds."""
    known = [values for values in scores if len(values) > 1]
    degrees = sum(len(values) - 1 for values in known)
    if not known:
        return None
    pooled = math.fsum((len(values) - 1) * variance(values) for values in known) / degrees
    return float(scipy.stats.t.ppf(0.5 + LEVEL / 2, degrees)) * math.sqrt(2 * pooled)


def _row(pair: Pair, bound: float | None, digits: int) -> list[str]:
    """Both scores, their difference, how they agree, the largest relative difference of any number
    that both recorded, and the first record in which they differ."""
    largest, since = 0.0, MISSING
    first, second = map(_records, pair)
    for name in (name for name in first if name in second):
        a, b = first[name], second[name]
        gap = max((_relative(a[key], b[key]) for key in a.keys() & b.keys()), default=0.0)
        if gap and since == MISSING:
            since = name
        largest = max(largest, gap)
    scores = [run.score_value() for run in pair]
    difference = minus(scores[1], scores[0])
    if largest <= ROUNDING_TOLERANCE:
        verdict = ROUNDING if largest else BITS
    elif difference is None or bound is None:
        verdict = UNKNOWN
    else:
        verdict = SPREAD if abs(difference) <= bound else BEYOND
    shown = [score_text(run.score, score) for run, score in zip(pair, scores, strict=True)]
    gap_text = f"{largest:.1e}" if largest else MISSING
    return [*shown, signed_text(difference, digits), verdict, gap_text, since]


def _records(run: Run) -> dict[str, dict[str, Any]]:
    """The numbers of each row of ``metrics.jsonl``, then of each evaluation, by its name."""
    rows = [mapping(parse_json(line, finite=False)) for line in metrics_lines(run)]
    records = {f"{row.get('kind')}, step {row.get('step')}": row for row in rows}
    for statistics, evaluation in run.counted_evaluations.items():
        records[f"evaluation, {statistics_label(statistics)}"] = evaluation
    return {
        name: {
            k: v for k, v in flatten_config(record).items() if not {*k.split(".")} & _NOT_RESULTS
        }
        for name, record in records.items()
    }


def _relative(a: Any, b: Any) -> float:
    """The relative difference of two numbers; 0 of other values."""
    if a == b or not (isinstance(a, (int, float)) and isinstance(b, (int, float))):
        return 0.0
    gap = abs(a - b) / max(abs(a), abs(b))
    return gap if math.isfinite(gap) else float(str(a) != str(b))  # two NaNs are equal


def _causes(pairs: Sequence[Pair]) -> str:
    """What differs in the provenance of the pairs, of all that decides digits."""
    found: dict[str, None] = {}
    for pair in pairs:
        flat = [flatten_config(run.provenance) for run in pair]
        for key in sorted(flat[0].keys() | flat[1].keys()):
            a, b = (side.get(key, "not recorded") for side in flat)
            if key.startswith(_CAUSES) and a != b:
                found.setdefault(f"- {plain(f'{key}: {a} / {b}')}")
    return "\n".join(["Recorded provenance differs in:" if found else "", *found]).strip() or (
        "Nothing that is recorded of code, versions and hardware differs."
    )
