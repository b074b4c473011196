"""What a study is expected to show: statements of a YAML file, judged on every pair of seeds.

A file of ``results/expected`` belongs to one study (a sweep of ``configs/sweep``) and was written
after that study had been run; it says what every machine is to find again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import yaml

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.cells import unlike
from sn_imagenet.reporting.statistics import contrast
from sn_imagenet.reporting.study import Side, Study, sound_cell
from sn_imagenet.reporting.verdict import LEAST_SEEDS, Claim, Comparison, Judgment, Verdict
from sn_imagenet.runs import Run, Setting

_KEYS = {"text", "quantity", "first", "second", "at_least", "at_most"}
_TOP1 = "top-1"


class Expected(NamedTuple):
    """A file's task and its statements, each a claim whose source is the file's name."""

    data: str
    model: str
    statements: tuple[Claim, ...]


class Quantity(NamedTuple):
    """A number of one run, in ``unit``: top-1 in percent, or an importance weight averaged over
    the layers; None where a run has none."""

    of: Callable[[Run], float | None]
    unit: str
    digits: int


def read_expected(file: Path) -> Expected:
    """Read the statements of a study.

    Raises:
        UserError: the file is missing or malformed; names it and the entry.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        entries = list(enumerate(content["expected"], start=1))
        task = str(content["data"]), str(content["model"])
    except OSError as error:
        raise UserError(f"{file}: cannot read the statements: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: not a file of statements ({error!r}); expected data, model and expected"
        ) from error
    return Expected(*task, tuple(_statement(i, entry, file) for i, entry in entries))


def _statement(number: int, entry: Any, file: Path) -> Claim:
    try:
        unknown = set(entry) - _KEYS
        if unknown or not {"at_least", "at_most"} & set(entry):
            raise ValueError(f"has {sorted(entry)}, of which there are {sorted(_KEYS)}")
        judge = partial(
            in_every_pair,
            _side(entry["first"], 1.0),
            _side(entry["second"], -1.0),
            _quantity(entry["quantity"]),
            float(entry.get("at_least", -math.inf)),
            float(entry.get("at_most", math.inf)),
        )
        return Claim(number, str(entry["text"]), file.name, judge)
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        raise UserError(f"{file}: statement {number}: {error}") from error


def _side(text: str, coefficient: float) -> Side:
    norm, _, setting = text.partition(" ")
    return Side(norm, Setting.parse(setting), coefficient)


def _quantity(text: str) -> Quantity:
    if text == _TOP1:
        return Quantity(lambda run: run.top1(), "points of top-1", 2)
    words = text.split()
    if len(words) != 3 or words[0] not in ("mean", "variance") or words[1] != "weight":
        raise ValueError(
            f"quantity: {text}: expected {_TOP1}, or 'mean weight MEMBER' or 'variance weight "
            "MEMBER' with a member of SN such as bn"
        )

    def weight(run: Run) -> float | None:
        values = [getattr(layer, words[0]).get(words[2]) for layer in run.weights]
        return fmean(values) if values and None not in values else None

    return Quantity(weight, "importance weight", 4)


def in_every_pair(
    first: Side, second: Side, quantity: Quantity, low: float, high: float, study: Study
) -> Judgment:
    """``first`` minus ``second`` within [low, high] in every pair of their seeds: it holds if all
    pairs are within, does not if none is. A count, so that one wild seed cannot hide behind a
    mean, and the spread of a cell that fails cannot make a large difference undecided."""
    sides = (first, second)
    cells = [study.cell(side.norm, side.setting) for side in sides]
    problems = [problem for side in sides if (problem := sound_cell(study, side))]
    if not problems and (difference := unlike(cells[0].runs, cells[1].runs)):
        problems.append(f"the sides differ in {difference}")
    groups = [[v for run in cell.runs if (v := quantity.of(run)) is not None] for cell in cells]
    problems += [
        f"{side.label}: {len(group)} values, {LEAST_SEEDS} seeds are needed"
        for side, group in zip(sides, groups, strict=True)
        if not problems and len(group) < LEAST_SEEDS
    ]
    gaps = [a - b for a, b in product(*groups)]
    comparison = Comparison(
        f"{first.label} - {second.label}",
        tuple(dict.fromkeys(side.setting for side in sides)),
        low,
        high,
        effect=fmean(groups[0]) - fmean(groups[1]) if gaps else None,
        estimate=contrast(groups, [1.0, -1.0]) if gaps else None,
        why_not="; ".join(problems),
        test="every pair of seeds; the interval is Welch's",
        unit=quantity.unit,
        seeds={side.label: len(group) for side, group in zip(sides, groups, strict=True)},
        runs=tuple(run for cell in cells for run in cell.runs),
    )
    verdict = Verdict.NOT_TESTED if problems else _of_pairs(gaps, low, high)
    return Judgment(
        verdict,
        (comparison,),
        (verdict,),
        counted=_words(gaps, comparison, quantity) if gaps else "",
        runs=comparison.runs,
        seeds=comparison.seeds,
        settings=comparison.settings,
    )


def _of_pairs(gaps: Sequence[float], low: float, high: float) -> Verdict:
    within = sum(low <= gap <= high for gap in gaps)
    if within == len(gaps):
        return Verdict.HOLDS
    return Verdict.UNDECIDED if within else Verdict.DOES_NOT


def _words(gaps: Sequence[float], comparison: Comparison, quantity: Quantity) -> str:
    margin = min(min(gaps) - comparison.low, comparison.high - max(gaps))
    return (
        f"{comparison.name} in {len(gaps)} pairs of seeds: {min(gaps):+.{quantity.digits}f} to "
        f"{max(gaps):+.{quantity.digits}f}, claimed {comparison.threshold}, margin "
        f"{margin:+.{quantity.digits}f} ({quantity.unit})"
    )
