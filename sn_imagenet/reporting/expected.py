"""What a study is expected to show: statements of a YAML file, judged on every pair of seeds.

Each file of ``results/expected`` belongs to one study (a sweep of ``configs/sweep``), was written
after that study had been run, and states what every machine should reproduce.
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
from sn_imagenet.reporting.cells import run_differences
from sn_imagenet.reporting.curves import mean_weight
from sn_imagenet.reporting.statistics import contrast
from sn_imagenet.reporting.study import ContrastTerm, Study, why_not_comparable
from sn_imagenet.reporting.verdict import LEAST_SEEDS, Claim, Comparison, Judgment, Verdict
from sn_imagenet.runs import Run, Setting

_KEYS = {"text", "quantity", "first", "second", "at_least", "at_most"}
_TOP1 = "top-1"


class Expected(NamedTuple):
    """A file's data set, network and statements, which are claims with the file as source."""

    data: str
    model: str
    statements: tuple[Claim, ...]


class Quantity(NamedTuple):
    """A number of one run, in ``unit``: top-1 in percent, or an importance weight averaged over
    the layers; None for a run without it."""

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
        pair = str(content["data"]), str(content["model"])
    except OSError as error:
        raise UserError(f"{file}: cannot read the statements: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: not a file of statements ({error!r}); expected data, model and expected"
        ) from error
    return Expected(*pair, tuple(_statement(i, entry, file) for i, entry in entries))


def _statement(number: int, entry: Any, file: Path) -> Claim:
    try:
        unknown = set(entry) - _KEYS
        if unknown or not {"at_least", "at_most"} & set(entry):
            raise ValueError(f"has {sorted(entry)}, expected keys among {sorted(_KEYS)}")
        judge = partial(
            in_every_pair,
            _term(entry["first"], 1.0),
            _term(entry["second"], -1.0),
            _quantity(entry["quantity"]),
            float(entry.get("at_least", -math.inf)),
            float(entry.get("at_most", math.inf)),
        )
        return Claim(number, str(entry["text"]), file.name, judge)
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        raise UserError(f"{file}: statement {number}: {error}") from error


def _term(text: str, coefficient: float) -> ContrastTerm:
    norm, _, setting = text.partition(" ")
    return ContrastTerm(norm, Setting.parse(setting), coefficient)


def _quantity(text: str) -> Quantity:
    if text == _TOP1:
        return Quantity(lambda run: run.score_value(), "points of top-1", 2)
    parts = text.split()
    if len(parts) != 3 or parts[0] not in ("mean", "variance") or parts[1] != "weight":
        raise ValueError(
            f"quantity: {text}: expected {_TOP1}, or 'mean weight MEMBER' or 'variance weight "
            "MEMBER' with a member of SN such as bn"
        )

    kind, _, member = parts
    return Quantity(lambda run: mean_weight(run.weights, kind, member), "importance weight", 4)


def in_every_pair(
    first: ContrastTerm,
    second: ContrastTerm,
    quantity: Quantity,
    low: float,
    high: float,
    study: Study,
) -> Judgment:
    """Judge whether ``first`` minus ``second`` is within [low, high] in every pair of their seeds:
    it holds if all pairs are within, and does not hold if none is. Pairs are counted so that a mean
    cannot hide an outlier, and the spread of a failing cell cannot make a large difference
    undecided."""
    terms = (first, second)
    cells = [study.cell(term.norm, term.setting) for term in terms]
    problems = [problem for term in terms if (problem := why_not_comparable(study, term))]
    if not problems and (difference := run_differences(cells[0].runs, cells[1].runs)):
        problems.append(f"the two cells differ in {difference}")
    groups = [[v for run in cell.runs if (v := quantity.of(run)) is not None] for cell in cells]
    problems += [
        f"{term.label}: {len(group)} values, {LEAST_SEEDS} seeds are needed"
        for term, group in zip(terms, groups, strict=True)
        if not problems and len(group) < LEAST_SEEDS
    ]
    gaps = [a - b for a, b in product(*groups)]
    comparison = Comparison(
        f"{first.label} - {second.label}",
        tuple(dict.fromkeys(term.setting for term in terms)),
        low,
        high,
        effect=fmean(groups[0]) - fmean(groups[1]) if gaps else None,
        estimate=contrast(groups, [1.0, -1.0]) if gaps else None,
        why_not="; ".join(problems),
        test="every pair of seeds; the interval is Welch's",
        unit=quantity.unit,
        seeds={term.label: len(group) for term, group in zip(terms, groups, strict=True)},
        runs=tuple(run for cell in cells for run in cell.runs),
    )
    verdict = Verdict.NOT_TESTED if problems else _verdict_of_pairs(gaps, low, high)
    spread, margin = _spread_and_margin(gaps, low, high, quantity.digits) if gaps else ("", "")
    counted = f"{comparison.name} in {len(gaps)} pairs of seeds: {spread}, claimed "
    counted += f"{comparison.threshold}, {margin} ({quantity.unit})"
    return Judgment(
        verdict,
        (comparison,),
        (verdict,),
        counted=counted if gaps else "",
        measured=f"{spread}, {margin}" if gaps else "",
        runs=comparison.runs,
        seeds=comparison.seeds,
        settings=comparison.settings,
    )


def _verdict_of_pairs(gaps: Sequence[float], low: float, high: float) -> Verdict:
    within = sum(low <= gap <= high for gap in gaps)
    if within == len(gaps):
        return Verdict.HOLDS
    return Verdict.UNDECIDED if within else Verdict.DOES_NOT


def _spread_and_margin(
    gaps: Sequence[float], low: float, high: float, digits: int
) -> tuple[str, str]:
    margin = min(min(gaps) - low, high - max(gaps))
    spread = f"{min(gaps):+.{digits}f} to {max(gaps):+.{digits}f}"
    return spread, f"margin {margin:+.{digits}f}"
