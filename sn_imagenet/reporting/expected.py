"""What a study is expected to show: statements of a YAML file, judged on every pair of seeds.

Each file of ``results/expected`` belongs to one study (a sweep of ``configs/sweep``), was written
after that study had been run, and states what every machine should reproduce.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.curves import mean_weight
from sn_imagenet.reporting.study import Study, StudyKey
from sn_imagenet.reporting.verdict import (
    WEIGHT,
    Claim,
    Judgment,
    Term,
    Value,
    Verdict,
    compare,
    count_verdict,
)

_KEYS = {"text", "quantity", "first", "second", "at_least", "at_most"}
_TOP1, _SCORE = "top-1", "score"


class Expected(NamedTuple):
    """A file's study and statements, which are claims with the file as source."""

    study: StudyKey
    statements: tuple[Claim, ...]


def read_expected(file: Path) -> Expected:
    """Read the statements of a study.

    Raises:
        UserError: the file is missing or malformed; names it and the entry.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        entries = list(enumerate(content["expected"], start=1))
        optional = (str(content.get(key, "")) for key in ("row", "task"))
        key = StudyKey(str(content["data"]), str(content["model"]), *optional)
    except OSError as error:
        raise UserError(f"{file}: cannot read the statements: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: not a file of statements ({error!r}); expected data, model and expected"
        ) from error
    return Expected(key, tuple(_statement(i, entry, file) for i, entry in entries))


def _statement(number: int, entry: Any, file: Path) -> Claim:
    try:
        unknown = set(entry) - _KEYS
        if unknown or not {"at_least", "at_most"} & set(entry):
            raise ValueError(f"has {sorted(entry)}, expected keys among {sorted(_KEYS)}")
        judge = partial(
            in_every_pair,
            first=Term.parse(entry["first"]),
            second=Term.parse(entry["second"]),
            value=_value(entry["quantity"]),
            unit={_TOP1: "points of top-1", _SCORE: _SCORE}.get(entry["quantity"], WEIGHT),
            low=float(entry.get("at_least", -math.inf)),
            high=float(entry.get("at_most", math.inf)),
        )
        return Claim(number, str(entry["text"]), file.name, judge)
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        raise UserError(f"{file}: statement {number}: {error}") from error


def _value(quantity: str) -> Value:
    """Top-1 in percent, another task's score, or an importance weight averaged over the layers."""
    if quantity in (_TOP1, _SCORE):
        return lambda run: run.score_value()
    match = re.fullmatch(r"(mean|variance) weight (\S+)", quantity)
    if not match:
        raise ValueError(
            f"quantity: {quantity}: expected {_TOP1}, {_SCORE}, 'mean weight MEMBER' or 'variance "
            "weight MEMBER' with a member of SN such as bn"
        )
    return lambda run: mean_weight(run.weights, match[1], match[2])


def in_every_pair(
    study: Study, first: Term, second: Term, value: Value, unit: str, low: float, high: float
) -> Judgment:
    """Judge whether ``first`` minus ``second`` is within [low, high] in every pair of their seeds:
    it holds if all pairs are within, and does not hold if none is. Pairs are counted so that a mean
    cannot hide an outlier, and the spread of a failing cell cannot make a large difference
    undecided."""
    comparison = compare(study, first, second, low, high, value=value, unit=unit)
    comparison = replace(comparison, test="every pair of seeds; the interval is Welch's")
    groups = [[value(run) for run in study.cell(*term).runs] for term in (first, second)]
    gaps = [a - b for a, b in product(*groups) if a is not None and b is not None]
    within = sum(low <= gap <= high for gap in gaps)
    verdict = count_verdict(within, len(gaps)) if comparison.tested else Verdict.NOT_TESTED
    counted = measured = ""
    if gaps:
        digits = 4 if unit == WEIGHT else 2
        spread = f"{min(gaps):+.{digits}f} to {max(gaps):+.{digits}f}"
        margin = f"margin {min(min(gaps) - low, high - max(gaps)):+.{digits}f}"
        counted = (
            f"{comparison.name} in {len(gaps)} pairs of seeds: {spread}, claimed "
            f"{comparison.threshold}, {margin} ({unit})"
        )
        measured = f"{spread}, {margin}"
    return Judgment(
        verdict,
        (comparison,),
        (verdict,),
        comparison.runs,
        comparison.seeds,
        comparison.settings,
        counted=counted,
        measured=measured,
    )
