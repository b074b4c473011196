"""The verdicts as ``claims.json`` and on the terminal."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.claims import CLAIMS
from sn_imagenet.reporting.expected import Expected, read_expected
from sn_imagenet.reporting.paper import Paper, read_paper
from sn_imagenet.reporting.render import plain
from sn_imagenet.reporting.study import Study, studies
from sn_imagenet.reporting.verdict import RULES, Claim, Comparison, Judgment, Verdict
from sn_imagenet.runs import Run, find_runs, write_text

CLAIMS_VERSION = 1


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict on one task."""

    claim: Claim
    study: Study
    judgment: Judgment


@dataclass(frozen=True)
class ClaimsWritten:
    """The file, the text for the terminal, and one line for each run that could not be read."""

    path: Path
    text: str
    warnings: list[str]


def judge_claims(runs: Sequence[Run], paper: Paper) -> list[Judged]:
    """The twelve claims on each task among ``runs``, the paper's own task first."""
    return [
        Judged(claim, study, claim.judge(study))
        for study in studies(runs, paper)
        for claim in CLAIMS
    ]


def judge_expected(runs: Sequence[Run], paper: Paper, expected: Expected) -> list[Judged]:
    """A study's own statements on the runs of its task."""
    task = expected.data, expected.model
    found = [study for study in studies(runs, paper) if (study.data, study.model) == task]
    study = found[0] if found else Study(*task, {}, paper.is_task(*task))
    return [Judged(claim, study, claim.judge(study)) for claim in expected.statements]


def write_claims(
    runs_dir: Path, out: Path, paper_file: Path, expected_file: Path | None = None
) -> ClaimsWritten:
    """Judge the claims, and a study's own statements where a file of them is given, on the runs
    below ``runs_dir`` and write ``<out>/claims.json``.

    Raises:
        UserError: no runs, no paper's numbers or statements, or the file cannot be written.
    """
    paper = read_paper(paper_file)
    expected = read_expected(expected_file) if expected_file else None
    runs, warnings = find_runs(runs_dir)
    if not runs:
        raise UserError(f"{runs_dir}: holds no readable runs: {'; '.join(warnings)}")
    judged = judge_claims(runs, paper)
    stated = judge_expected(runs, paper, expected) if expected else []
    content = {
        "version": CLAIMS_VERSION,
        "paper": "arXiv 1806.10779",
        "rules": list(RULES),
        "claims": [claim_entry(one, runs_dir) for one in judged],
        "expected": [claim_entry(one, runs_dir) for one in stated],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return ClaimsWritten(
        write_text(out / "claims.json", text, "--out"),
        expected_text(stated) + claims_text(judged, paper),
        warnings,
    )


def claim_entry(judged: Judged, root: Path) -> dict[str, Any]:
    """One entry of ``claims.json``. ``effect``, ``interval``, ``test`` and ``margin`` are of the
    comparison that decides (``decided_by``: the one furthest from the claim's side); all of them
    stand under ``comparisons``. Effects are in ``unit``."""
    claim, judgment = judged.claim, judged.judgment
    deciding = judgment.deciding
    tested = [c for c in judgment.comparisons if c.tested]
    runs = judgment.runs or tuple(
        dict.fromkeys(run for c in tested or judgment.comparisons for run in c.runs)
    )
    seeds = judgment.seeds or {
        label: count for c in tested or judgment.comparisons for label, count in c.seeds.items()
    }
    settings = judgment.settings or tuple(dict.fromkeys(s for c in tested for s in c.settings))
    return {
        "number": claim.number,
        "claim": claim.text,
        "source": claim.source,
        "data": judged.study.data,
        "model": judged.study.model,
        "verdict": judgment.verdict.value,
        "decided_by": deciding.name if deciding else None,
        "effect": deciding.effect if deciding else None,
        "counted": judgment.counted or None,
        "unit": deciding.unit if deciding else None,
        "interval": _pair(deciding.interval) if deciding else None,
        "validation_interval": _pair(deciding.validation) if deciding else None,
        "threshold": deciding.threshold if deciding else None,
        "margin": deciding.margin if deciding else None,
        "test": deciding.test if deciding else "count",
        "seeds": seeds,
        "settings": [s.name for s in settings],
        "runs": [run.path.relative_to(root).as_posix() for run in runs],
        "note": judgment.note or None,
        "comparisons": [
            {
                "name": c.name,
                "verdict": verdict.value,
                "settings": [s.name for s in c.settings],
                "effect": c.effect,
                "unit": c.unit,
                "interval": _pair(c.interval),
                "validation_interval": _pair(c.validation),
                "threshold": c.threshold,
                "margin": c.margin,
                "test": c.test or None,
                "seeds": c.seeds,
                "not_tested_because": c.why_not or None,
            }
            for c, verdict in zip(judgment.comparisons, judgment.verdicts, strict=True)
        ],
    }


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    return list(interval) if interval else None


def effect_words(comparison: Comparison) -> str:
    """``+0.52 [+0.10, +0.94], ≥ 0, margin +0.10``; without an interval where there is none."""
    if comparison.effect is None:
        return "no effect measured"
    digits = 4 if "weight" in comparison.unit else 2
    words = f"{comparison.effect:+.{digits}f}"
    if comparison.interval:
        first, last = comparison.interval
        words += f" [{first:+.{digits}f}, {last:+.{digits}f}]"
    else:
        words += " (no spread over seeds to judge by)"
    words += f", claimed {comparison.threshold}"
    if comparison.margin is not None and comparison.tested:
        words += f", margin {comparison.margin:+.{digits}f}"
    return words


def where(judgment: Judgment) -> str:
    """``3 of 9 comparisons tested: SN-BN (8,32), ...``; empty for a counted claim."""
    if not judgment.comparisons or judgment.counted:
        return ""
    tested = [c.name for c in judgment.comparisons if c.tested]
    total = len(judgment.comparisons)
    names = ": " + ", ".join(tested[:6] + ["..."] * (len(tested) > 6)) if tested else ""
    return f"{len(tested)} of {total} comparison{'s' * (total > 1)} tested{names}"


def claims_text(judged: Sequence[Judged], paper: Paper) -> str:
    """The verdicts in lines of at most 100 characters, the data set's name on every claim."""
    lines: list[str] = []
    titles = list(dict.fromkeys(one.study.title for one in judged))
    for one in judged:
        if one.claim.number == CLAIMS[0].number:
            lines += ["", f"The paper's claims on {plain(one.study.title)}", ""]
        lines += _judged_lines(one)
    if not any(one.study.of_the_paper for one in judged):
        lines += ["", f"No run of {paper.label} here: nothing above is a test on it."]
    lines += ["", f"Judged on: {', '.join(map(plain, titles))}. Rules:"]
    lines += [line for rule in RULES for line in _wrapped(f"- {rule}", "  ")]
    return "\n".join(lines[1:]) + "\n"


def expected_text(stated: Sequence[Judged]) -> str:
    """A study's own statements with their verdicts, in lines as :func:`claims_text`."""
    if not stated:
        return ""
    head = f"What {plain(stated[0].claim.source)} expects of {plain(stated[0].study.title)}"
    lines = [head, "", *(line for one in stated for line in _judged_lines(one)), ""]
    return "\n".join(lines) + "\n"


def _judged_lines(one: Judged) -> list[str]:
    claim, judgment = one.claim, one.judgment
    head = f"{claim.number:2d}. [{plain(one.study.data)}] {judgment.verdict.value.upper()}: "
    lines = _wrapped(head + plain(f"{claim.text} ({claim.source})"), "    ")
    deciding = judgment.deciding
    details = [judgment.counted, where(judgment)]
    if deciding and not judgment.counted:
        details += [f"{deciding.name}: {effect_words(deciding)} ({deciding.unit})"]
        if deciding.validation and deciding.interval:
            low, high = deciding.validation
            details.append(f"finite validation set alone: [{low:+.2f}, {high:+.2f}]")
        if deciding.tested:
            details.append(deciding.test)
    if judgment.verdict is Verdict.NOT_TESTED and judgment.why_not:
        details.append(f"why: {judgment.why_not}")
    for detail in dict.fromkeys([*details, judgment.note]):
        if detail:
            lines += _wrapped("      " + plain(detail), "      ")
    return lines


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent=indent, break_long_words=False)
