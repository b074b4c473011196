"""What a study is expected to show: statements of a YAML file, judged on every pair of seeds.

Each file of ``results/expected`` belongs to one study (a sweep of ``configs/sweep``), was written
after that study had been run, and states what every machine should reproduce.
"""

from __future__ import annotations

import math
import re
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.cells import signed_text
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
from sn_imagenet.runs import Run

_KEYS = {"text", "quantity", "first", "second", "at_least", "at_most"}


def read_expected(file: Path) -> tuple[StudyKey, list[Claim]]:
    """Read which study a file is about, and its statements: claims with the file as source.

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
    return key, [_statement(number, entry, file) for number, entry in entries]


def _statement(number: int, entry: Any, file: Path) -> Claim:
    try:
        if set(entry) - _KEYS or not {"at_least", "at_most"} & set(entry):
            raise ValueError(f"has {sorted(entry)}, expected keys among {sorted(_KEYS)}")
        judge = partial(
            in_every_pair,
            first=Term.parse(entry["first"]),
            second=Term.parse(entry["second"]),
            value=_value(entry["quantity"]),
            unit=WEIGHT if " weight " in entry["quantity"] else "",
            low=float(entry.get("at_least", -math.inf)),
            high=float(entry.get("at_most", math.inf)),
        )
        return Claim(number, str(entry["text"]), file.name, judge)
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        raise UserError(f"{file}: statement {number}: {error}") from error


def _value(quantity: str) -> Value:
    """Top-1 in percent, another task's score, or an importance weight averaged over the layers."""
    if quantity in ("top-1", "score"):
        return Run.score_value
    match = re.fullmatch(r"(mean|variance) weight (\S+)", quantity)
    if not match:
        raise ValueError(
            f"quantity: {quantity}: expected top-1, score, 'mean weight MEMBER' or 'variance "
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
    test = "every pair of seeds; the interval is Welch's"
    c = compare(study, first, second, low, high, value=value, unit=unit, test=test)
    gaps = [a - b for a, b in product(*c.groups.values())]
    within = sum(low <= gap <= high for gap in gaps)
    verdict = count_verdict(within, len(gaps)) if c.tested else Verdict.NOT_TESTED
    counted = measured = ""
    if gaps:
        numbers = (min(gaps), max(gaps), min(min(gaps) - low, high - max(gaps)))
        least, most, margin = (signed_text(n, c.digits) for n in numbers)
        measured = f"{least} to {most}, margin {margin}"
        counted = (
            f"{c.name} in {len(gaps)} pairs of seeds: {least} to {most}, claimed {c.threshold}, "
            f"margin {margin} ({c.unit})"
        )
    about = (c.runs, c.seeds, c.settings)
    return Judgment(verdict, (c,), (verdict,), *about, counted=counted, measured=measured)
