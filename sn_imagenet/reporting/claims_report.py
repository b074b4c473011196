"""The verdicts as ``claims.json`` and ``claims.md``, and as lines for the terminal."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from sn_imagenet.reporting.claims import CLAIMS
from sn_imagenet.reporting.detection_claims import detection_claims
from sn_imagenet.reporting.expected import Expected, read_expected
from sn_imagenet.reporting.paper import read_paper
from sn_imagenet.reporting.render import markdown_escape, plain
from sn_imagenet.reporting.rivals import rival_claims
from sn_imagenet.reporting.search import SEARCH, SEARCH_CLAIMS
from sn_imagenet.reporting.study import RunCollection, Study, studies_of, study_of
from sn_imagenet.reporting.stylization import STYLIZATION, STYLIZATION_CLAIMS
from sn_imagenet.reporting.verdict import RULES, WEIGHT, Claim, Comparison, Judgment
from sn_imagenet.runs import write_text

CLAIMS_VERSION = 1
TASK_CLAIMS = {SEARCH: SEARCH_CLAIMS, STYLIZATION: STYLIZATION_CLAIMS}
_COLUMNS = 110  # of a line on the terminal


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with its verdict on one study."""

    claim: Claim
    study: Study
    judgment: Judgment


@dataclass(frozen=True)
class ClaimFiles:
    """The files, the verdicts for the terminal (``statements``: only a study's own, where it has
    any), and one line for each run that could not be read."""

    path: Path
    details: Path
    text: str
    statements: str
    warnings: list[str]


def judge_claims(collection: RunCollection) -> list[JudgedClaim]:
    """The claims on each study among the runs that has any, the paper's own first."""
    return [
        JudgedClaim(claim, study, claim.judge(study))
        for study in studies_of(collection)
        for claim in claims_on(study)
    ]


def claims_on(study: Study) -> Sequence[Claim]:
    """The claims on a study's task: on classification twelve, and those about rivals of SN."""
    if study.is_classification:
        return [*CLAIMS, *rival_claims(study)]
    return TASK_CLAIMS.get(study.task) or detection_claims(study)


def judge_expected(collection: RunCollection, expected: Expected) -> list[JudgedClaim]:
    """A study's own statements on its runs."""
    study = study_of(collection, expected.study)
    return [JudgedClaim(claim, study, claim.judge(study)) for claim in expected.statements]


def write_claims(
    runs_dir: Path, out: Path, paper_file: Path, expected_file: Path | None = None
) -> ClaimFiles:
    """Judge the paper's claims on the runs below ``runs_dir``, and a study's own statements if
    ``expected_file`` is given. Write ``<out>/claims.json`` and ``<out>/claims.md``.

    Raises:
        UserError: no runs, an input file cannot be read, or a file cannot be written.
    """
    paper = read_paper(paper_file)
    expected = read_expected(expected_file) if expected_file else None
    collection, warnings = RunCollection.read(runs_dir, paper)
    judged = judge_claims(collection)
    stated = judge_expected(collection, expected) if expected else []
    content = {
        "version": CLAIMS_VERSION,
        "paper": "arXiv 1806.10779",
        "rules": list(RULES),
        "claims": [claim_entry(one, runs_dir) for one in judged],
        "expected": [claim_entry(one, runs_dir) for one in stated],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    of_studies = groupby(judged, lambda one: one.study.title)
    groups = [group for group in (stated, *(list(group) for _, group in of_studies)) if group]
    without = [s.title for s in studies_of(collection) if not claims_on(s)]
    notes = f"No claims are stated about the task of {'; '.join(without)}.\n" if without else ""
    if not any(one.study.matches_paper for one in judged):
        notes += f"No run here is of {paper.label}: nothing above tests the paper's claims on it.\n"
    return ClaimFiles(
        path=write_text(out / "claims.json", text, "--out"),
        details=write_text(out / "claims.md", _markdown(groups, notes), "--out"),
        text="\n".join([*map(_lines, groups), notes]).rstrip("\n") + "\n",
        statements=_lines(groups[0]) if groups else notes,
        warnings=warnings,
    )


def claim_entry(judged: JudgedClaim, root: Path) -> dict[str, Any]:
    """One entry of ``claims.json``. ``effect``, ``interval``, ``test`` and ``margin`` belong to the
    deciding comparison (``decided_by``), the one furthest from what is claimed. ``comparisons``
    lists all of them. Effects are in ``unit``."""
    claim, judgment = judged.claim, judged.judgment
    deciding = judgment.deciding
    return {
        "number": claim.number,
        "claim": claim.text,
        "source": claim.source,
        "data": judged.study.data,
        "model": judged.study.model,
        "verdict": judgment.verdict.value,
        "decided_by": deciding.name if deciding else None,
        "effect": None,  # here in order
        "counted": judgment.counted or None,
        **_numbers(deciding),
        "test": deciding.test if deciding else "count",
        "seeds": judgment.seeds,
        "settings": [s.name for s in judgment.settings],
        "runs": [run.path.relative_to(root).as_posix() for run in judgment.runs],
        "note": judgment.note or None,
        "comparisons": [
            {
                "name": c.name,
                "verdict": verdict.value,
                "settings": [s.name for s in c.settings],
                **_numbers(c),
                "test": c.test or None,
                "seeds": c.seeds,
                "not_tested_because": c.why_not or None,
            }
            for c, verdict in zip(judgment.comparisons, judgment.verdicts, strict=True)
        ],
    }


def _numbers(c: Comparison | None) -> dict[str, Any]:
    return {
        "effect": c.effect if c else None,
        "unit": c.unit if c else None,
        "interval": list(c.interval) if c and c.interval else None,
        "validation_interval": list(c.validation) if c and c.validation else None,
        "threshold": c.threshold if c else None,
        "margin": c.margin if c else None,
    }


def effect_text(comparison: Comparison) -> str:
    """``+0.52 [+0.10, +0.94], claimed ≥ 0, margin +0.10``; the interval may be missing."""
    if comparison.effect is None:
        return "no effect measured"
    effect, margin = _effect_and_margin(comparison)
    return f"{effect}, claimed {comparison.threshold}{margin}"


def _effect_and_margin(comparison: Comparison) -> tuple[str, str]:
    digits = 4 if comparison.unit == WEIGHT else 2
    effect = f"{comparison.effect:+.{digits}f}"
    if comparison.interval:
        first, last = comparison.interval
        effect += f" [{first:+.{digits}f}, {last:+.{digits}f}]"
    else:
        effect += " (no spread over seeds to judge by)"
    if comparison.margin is None or not comparison.tested:
        return effect, ""
    return effect, f", margin {comparison.margin:+.{digits}f}"


def tested_text(judgment: Judgment) -> str:
    """``3 of 9 comparisons tested: SN-BN (8,32), ...``; empty for a counted claim."""
    if not judgment.comparisons or judgment.counted:
        return ""
    tested = [c.name for c in judgment.comparisons if c.tested]
    total = len(judgment.comparisons)
    names = ": " + ", ".join(tested[:6] + ["..."] * (len(tested) > 6)) if tested else ""
    return f"{len(tested)} of {total} comparison{'s' * (total > 1)} tested{names}"


def _title(group: Sequence[JudgedClaim]) -> str:
    claim, study = group[0].claim, group[0].study
    if claim in claims_on(study):
        whose = "The paper's claims" if study.is_classification else "Claims"
        return f"{whose} on {study.title}"
    return f"What {claim.source} expects of {study.title}"


def _lines(group: Sequence[JudgedClaim]) -> str:
    """A title, then one line for each claim: verdict, statement, measured range, margin."""
    return "\n".join([f"{plain(_title(group))}:", *map(_line, group)]) + "\n"


def _line(one: JudgedClaim) -> str:
    verdict = f"{one.judgment.verdict.value.upper():<13} {one.claim.number:2d}. "
    deciding = one.judgment.deciding
    measured = one.judgment.measured or one.judgment.counted
    if not measured and deciding:
        measured = "".join(_effect_and_margin(deciding))
    space = _COLUMNS - len(verdict) - len(measured) - 2
    statement = textwrap.shorten(plain(one.claim.text), space, placeholder="...")
    return f"{verdict}{statement:<{space}}  {plain(measured)}".rstrip()


def _markdown(groups: Sequence[Sequence[JudgedClaim]], notes: str) -> str:
    parts = ["# Verdicts"]
    for group in groups:
        parts += [f"## {markdown_escape(_title(group))}", "\n".join(map(_markdown_item, group))]
    parts += [notes.rstrip()] if notes else []
    parts += ["## Rules", "\n".join(f"- {markdown_escape(rule)}" for rule in RULES)]
    return "\n\n".join(parts) + "\n"


def _markdown_item(one: JudgedClaim) -> str:
    claim, judgment = one.claim, one.judgment
    text = markdown_escape(f"[{one.study.data}] {claim.text} ({claim.source})")
    deciding = judgment.deciding
    details = [judgment.counted, tested_text(judgment)]
    if deciding and not judgment.counted:
        details += [f"{deciding.name}: {effect_text(deciding)} ({deciding.unit})"]
        if deciding.validation and deciding.interval:
            low, high = deciding.validation
            details.append(f"finite validation set alone: [{low:+.2f}, {high:+.2f}]")
        if deciding.tested:
            details.append(deciding.test)
    if judgment.why_not:
        details.append(f"why: {judgment.why_not}")
    details = [detail for detail in dict.fromkeys([*details, judgment.note]) if detail]
    number = f"{claim.number}. "
    items = [f"{' ' * len(number)}- {markdown_escape(detail)}" for detail in details]
    return "\n".join([f"{number}**{judgment.verdict.value}**: {text}", *items])
