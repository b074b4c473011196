"""Report of single runs: a table of their evaluations and, for SN, figures of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sn_imagenet.reporting.cells import (
    MISSING,
    cell_label,
    evaluation_label,
    score_heading,
    score_text,
)
from sn_imagenet.reporting.figures.files import plot_run
from sn_imagenet.reporting.render import markdown_table
from sn_imagenet.runs import FINISHED, NOT_EVALUATED, Run, write_text
from sn_imagenet.runs.files import SCORE_TABLE, TOP1_TABLE
from sn_imagenet.runs.scores import TOP1, Score

_TOP1_COLUMNS = ("top-1", "top-5", "correct/seen")


def report_runs(runs: Sequence[Run], table: Path | None = None) -> None:
    """Write ``top1.md`` (``score.md`` for another score) and the figures into each run's directory,
    and the table of all runs to ``table``, if given. Print that table and the paths.

    Raises:
        UserError: a file cannot be written.
    """
    written: list[Path] = []
    for run in runs:
        name = TOP1_TABLE if run.score == TOP1 else SCORE_TABLE
        written.append(write_text(run.path / name, run_tables([run])))
        written += plot_run(run)
    combined = run_tables(runs)
    if table is not None:
        written.append(write_text(table, combined, "table="))
    print(combined)
    for path in written:
        print(path)


def run_tables(runs: Sequence[Run]) -> str:
    """Markdown: a row for each evaluation of each run, the one that Table 2 uses first; one table
    for each score among the runs. Identical evaluations share one row."""
    tables: dict[Score, list[dict[str, str]]] = {}
    for run in runs:
        tables.setdefault(run.score, []).extend(_run_rows(run))
    texts = []
    for rows in tables.values():
        head = list(dict.fromkeys(heading for row in rows for heading in row))
        cells = [[row.get(heading, MISSING) for heading in head] for row in rows]
        texts.append(markdown_table(head, cells, "llllrl" + "r" * (len(head) - 6)) + "\n")
    return "\n".join(texts)


def _run_rows(run: Run) -> list[dict[str, str]]:
    """A row for each evaluation of a run: heading -> text."""
    cell = run.cell
    labels = {
        "data": cell.data,
        "model": ", ".join(filter(None, (cell.model, cell.row))),
        "norm": cell_label(cell),
        "setting": str(cell.setting),
        "seed": str(run.seed),
    }
    if not run.evaluations or run.state not in (FINISHED, NOT_EVALUATED):
        head = _TOP1_COLUMNS if run.score == TOP1 else (score_heading(run.score),)
        numbers = {**dict.fromkeys(head, MISSING), head[0]: run.state}
        return [{**labels, "statistics": MISSING, **numbers}]
    counted = run.counted_evaluations.get(run.statistics)
    rows = [
        {**labels, "statistics": evaluation_label(run, evaluation), **_numbers(run, evaluation)}
        for evaluation in sorted(run.evaluations, key=lambda e: e is not counted)
    ]
    return [row for i, row in enumerate(rows) if row not in rows[:i]]


def _numbers(run: Run, evaluation: dict[str, Any]) -> dict[str, str]:
    """Top-1, top-5 and counts; or another score, then all other numbers of an evaluation."""
    score = score_text(run.score, evaluation[run.score.key])
    if run.score == TOP1:
        counts = f"{evaluation.get('top1_correct')}/{evaluation.get('seen')}"
        texts = (score, score_text(TOP1, evaluation.get("top5")), counts)
        return dict(zip(_TOP1_COLUMNS, texts, strict=True))
    others = {
        name: f"{value:.5g}" if isinstance(value, float) else str(value)
        for name, value in evaluation.items()
        if type(value) in (int, float) and name != run.score.key
    }
    return {score_heading(run.score): score, **others}
