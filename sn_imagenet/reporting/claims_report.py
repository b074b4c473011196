"""The verdicts as ``claims.json`` and ``claims.md``, and as lines for the terminal."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sn_imagenet.reporting.cells import interval_text, signed_text
from sn_imagenet.reporting.claims import CLAIMS, DETECTION_CLAIMS, own_claims
from sn_imagenet.reporting.command import Written
from sn_imagenet.reporting.detection import TASK as DETECTION
from sn_imagenet.reporting.expected import read_expected
from sn_imagenet.reporting.paper import read_paper
from sn_imagenet.reporting.render import markdown_escape, plain
from sn_imagenet.reporting.rivals import RIVAL_CLAIMS
from sn_imagenet.reporting.search import SEARCH, SEARCH_CLAIMS
from sn_imagenet.reporting.study import RunCollection, Study, studies_of, study_of
from sn_imagenet.reporting.stylization import STYLIZATION, STYLIZATION_CLAIMS
from sn_imagenet.reporting.verdict import RULES, Claim, Comparison, Judgment
from sn_imagenet.runs import write_text

CLAIMS_VERSION = 1
TASK_CLAIMS = {SEARCH: SEARCH_CLAIMS, STYLIZATION: STYLIZATION_CLAIMS}
_COLUMNS = 110  # of a line on the terminal


class JudgedClaim(NamedTuple):
    """A claim with its verdict on one study."""

    claim: Claim
    study: Study
    judgment: Judgment


class ClaimGroup(NamedTuple):
    """The claims of one kind on one study. ``key``: their list in ``claims.json``."""

    key: str
    title: str
    judged: list[JudgedClaim]


def judge_claims(collection: RunCollection, expected_file: Path | None = None) -> list[ClaimGroup]:
    """The claims on each study among the runs: those of the paper, those published about rivals of
    SN, and those about one's own methods; last the regression checks of ``expected_file``.

    Raises:
        UserError: that file cannot be read.
    """
    groups = []
    for study in studies_of(collection):
        rivals = [claim for claim, rival in RIVAL_CLAIMS.items() if rival in study.methods]
        whose = "The paper's claims" if study.is_classification else "Claims"
        for key, kind, claims in (
            ("claims", whose, claims_on(study)),
            ("rivals", "Rivals of SN", rivals if study.is_classification else []),
            ("methods", "Your own methods", own_claims(study)),
        ):
            groups.append(_judge(key, f"{kind} on {study.title}", study, claims))
    if expected_file:
        about, statements = read_expected(expected_file)
        study = study_of(collection, about)
        title = f"Regression checks on {study.title} ({expected_file.name}, set from our own runs)"
        groups.append(_judge("expected", title, study, statements))
    return sorted((g for g in groups if g.judged), key=lambda g: g.key == "expected")


def _judge(key: str, title: str, study: Study, claims: Sequence[Claim]) -> ClaimGroup:
    return ClaimGroup(key, title, [JudgedClaim(c, study, c.judge(study)) for c in claims])


def claims_on(study: Study) -> Sequence[Claim]:
    """The claims on a study's task: twelve on classification."""
    if study.is_classification:
        return CLAIMS
    if study.task == DETECTION:
        return [claim for claim, row in DETECTION_CLAIMS.items() if row in ("", study.row)]
    return TASK_CLAIMS.get(study.task, ())


def claim_notes(collection: RunCollection) -> list[str]:
    """What the claims leave out."""
    studies = studies_of(collection)
    without = "; ".join(study.title for study in studies if not claims_on(study))
    notes = [f"No claims are stated about the task of {without}."] if without else []
    if not any(study.matches_paper for study in studies):
        classified = any(study.is_classification for study in studies)
        label = collection.paper.label if classified else "the paper's data and network"
        notes.append(f"No run here is of {label}: nothing here tests the paper's claims on it.")
    return notes


def write_claims(
    runs_dir: Path, out: Path, paper_file: Path, expected_file: Path | None = None, **options: Any
) -> Written:
    """Judge the paper's claims on the runs below ``runs_dir``, and a study's own statements if
    ``expected_file`` is given. Write ``<out>/claims.json`` and ``<out>/claims.md``. ``--brief``
    prints only the study's own statements, where it has any. ``options``: see
    :meth:`.RunCollection.read`.

    Raises:
        UserError: no runs, an input file cannot be read, or a file cannot be written.
    """
    collection, warnings = RunCollection.read(runs_dir, read_paper(paper_file), **options)
    groups, notes = judge_claims(collection, expected_file), claim_notes(collection)
    lists: dict[str, list[dict[str, Any]]] = {"claims": [], "expected": []}
    for group in groups:
        lists.setdefault(group.key, []).extend(map(claim_entry, group.judged))
    head = {"version": CLAIMS_VERSION, "paper": "arXiv 1806.10779", "rules": list(RULES)}
    text = json.dumps(head | lists, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    paths = [
        write_text(out / "claims.json", text, "--out"),
        write_text(out / "claims.md", _markdown(groups, notes), "--out"),
    ]
    first = [g for g in groups if g.key == "expected"] or groups[:1]
    text = "\n".join([*map(_lines, groups), *notes])
    brief = "\n".join([*map(_lines, first)] or notes)
    return Written(paths, warnings, text, brief)


def claim_entry(judged: JudgedClaim) -> dict[str, Any]:
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
        "runs": judged.study.collection.folders(judgment.runs),
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
        "unit": c.unit or None if c else None,
        "interval": list(c.interval) if c and c.interval else None,
        "validation_interval": list(c.validation) if c and c.validation else None,
        "threshold": c.threshold if c else None,
        "margin": c.margin if c else None,
    }


def effect_text(comparison: Comparison, *, claimed: bool = True) -> str:
    """``+0.52 [+0.10, +0.94], claimed ≥ 0, margin +0.10``; the interval may be missing."""
    c, digits = comparison, comparison.digits
    interval = interval_text(c.interval, digits, "+") or "(no spread over seeds to judge by)"
    parts = [f"{signed_text(c.effect, digits)} {interval}"]
    parts += [f"claimed {c.threshold}"] if claimed else []
    if c.margin is not None and c.tested:
        parts.append(f"margin {signed_text(c.margin, digits)}")
    return ", ".join(parts)


def _lines(group: ClaimGroup) -> str:
    """A title, then one line for each claim: verdict, statement, measured range, margin."""
    return "\n".join([f"{plain(group.title)}:", *map(_line, group.judged)]) + "\n"


def _line(one: JudgedClaim) -> str:
    verdict = f"{one.judgment.verdict.value.upper():<13} {one.claim.number:2d}. "
    deciding = one.judgment.deciding
    measured = one.judgment.measured or one.judgment.counted
    if not measured and deciding:
        measured = effect_text(deciding, claimed=False)
    space = _COLUMNS - len(verdict) - len(measured) - 2
    statement = textwrap.shorten(plain(one.claim.text), space, placeholder="...")
    return f"{verdict}{statement:<{space}}  {plain(measured)}".rstrip()


def _markdown(groups: Sequence[ClaimGroup], notes: Sequence[str]) -> str:
    parts = ["# Verdicts"]
    for group in groups:
        items = map(_markdown_item, group.judged)
        parts += [f"## {markdown_escape(group.title)}", "\n".join(items)]
    parts += ["\n".join(notes)] if notes else []
    parts += ["## Rules", "\n".join(f"- {markdown_escape(rule)}" for rule in RULES)]
    return "\n\n".join(parts) + "\n"


def _markdown_item(one: JudgedClaim) -> str:
    number = f"{one.claim.number}. "
    text = markdown_escape(f"[{one.study.data}] {one.claim.text} ({one.claim.source})")
    items = [f"{' ' * len(number)}- {markdown_escape(detail)}" for detail in claim_details(one)]
    return "\n".join([f"{number}**{one.judgment.verdict.value}**: {text}", *items])


def claim_details(one: JudgedClaim) -> list[str]:
    """What decided a verdict, the tests, and what was not tested."""
    judgment, deciding = one.judgment, one.judgment.deciding
    details = [judgment.counted]
    if judgment.comparisons and not judgment.counted:
        tested = [c.name for c in judgment.comparisons if c.tested]
        total = len(judgment.comparisons)
        names = ": " + ", ".join(tested[:6] + ["..."] * (len(tested) > 6)) if tested else ""
        details.append(f"{len(tested)} of {total} comparison{'s' * (total > 1)} tested{names}")
    if deciding and not judgment.counted:
        details.append(f"{deciding.name}: {effect_text(deciding)} ({deciding.unit})")
        if validation := deciding.interval and interval_text(deciding.validation, 2, "+"):
            details.append(f"finite validation set alone: {validation}")
        if deciding.tested:
            details.append(deciding.test)
    if judgment.why_not:
        details.append(f"why: {judgment.why_not}")
    return [detail for detail in dict.fromkeys([*details, judgment.note]) if detail]
