"""The sections beneath a table: runs without a number, departures from the paper, revisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sn_imagenet.reporting.departures import gather_departures
from sn_imagenet.reporting.render import code_span, markdown_escape, markdown_table
from sn_imagenet.runs import FINISHED, Run


def appendix_markdown(runs: Sequence[Run], root: Path) -> list[str]:
    """Markdown paragraphs on ``runs``. Their folders are given relative to ``root``."""
    return [
        *_without_number(runs, root),
        *_departures(runs),
        *_revisions(runs),
    ]


def _without_number(runs: Sequence[Run], root: Path) -> list[str]:
    lines = [
        f"- {code_span(run.path.relative_to(root).as_posix())}: {run.state}"
        + (f", {markdown_escape(run.detail)}" if run.detail else "")
        for run in runs
        if run.state != FINISHED
    ]
    return ["### Runs without a number", "\n".join(lines)] if lines else []


def _departures(runs: Sequence[Run]) -> list[str]:
    if not any(run.evaluations or run.departures for run in runs):
        return []
    heading = "### Departures from the paper's protocol, as recorded by the runs"
    rows = [[d.item, d.paper, d.ours, d.which] for d in gather_departures(runs)]
    if not rows:
        return [heading, "None."]
    return [heading, markdown_table(["item", "paper", "ours", "runs"], rows)]


def _revisions(runs: Sequence[Run]) -> list[str]:
    revisions = Counter((r.git_revision, r.git_dirty) for r in runs if r.git_revision)
    if not revisions:
        return []
    lines = [
        f"- {code_span(revision[:12])}{', with uncommitted changes' if dirty else ''}: {count} "
        f"run{'s' if count > 1 else ''}"
        for (revision, dirty), count in sorted(revisions.items())
    ]
    return ["### Git revisions", "\n".join(lines)]
