"""What stands beneath a table: runs without a number, departures from the paper, revisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sn_imagenet.reporting.cells import method_label
from sn_imagenet.reporting.render import markdown_table
from sn_imagenet.runs import FINISHED, Run

_NAMED_RUNS = 4


def appendix_markdown(runs: Sequence[Run], root: Path) -> list[str]:
    """Markdown paragraphs on ``runs``, whose folders are named relative to ``root``."""
    return [
        *_without_number(runs, root),
        *_departures(runs),
        *_revisions(runs),
    ]


def _without_number(runs: Sequence[Run], root: Path) -> list[str]:
    lines = [
        f"- `{run.path.relative_to(root).as_posix()}`: {run.state}"
        + (f", {run.detail}" if run.detail else "")
        for run in runs
        if run.state != FINISHED
    ]
    return ["### Runs without a number", "\n".join(lines)] if lines else []


def _departures(runs: Sequence[Run]) -> list[str]:
    ended = [run for run in runs if run.evaluations or run.departures]
    if not ended:
        return []
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in ended:
        for departure in dict.fromkeys(run.departures):
            groups.setdefault(departure, []).append(run)
    heading = "### Departures from the paper's protocol, as recorded by the runs"
    if not groups:
        return [heading, "None."]
    rows = [[*departure, _which(group, len(ended))] for departure, group in groups.items()]
    return [heading, markdown_table(["item", "paper", "ours", "runs"], rows)]


def _which(runs: Sequence[Run], total: int) -> str:
    if len(runs) == total:
        return f"all {total}" if total > 1 else "the only one"
    cells = list(dict.fromkeys((run.cell.norm, run.cell.setting) for run in runs))
    names = [f"{method_label(norm)} {setting}" for norm, setting in cells[:_NAMED_RUNS]]
    more = [f"{len(cells) - _NAMED_RUNS} more cells"] if len(cells) > _NAMED_RUNS else []
    return f"{len(runs)} of {total}: {', '.join(names + more)}"


def _revisions(runs: Sequence[Run]) -> list[str]:
    revisions = Counter((r.git_revision, r.git_dirty) for r in runs if r.git_revision)
    if not revisions:
        return []
    lines = [
        f"- `{revision[:12]}`{', with uncommitted changes' if dirty else ''}: {count} "
        f"run{'s' if count > 1 else ''}"
        for (revision, dirty), count in sorted(revisions.items())
    ]
    return ["### Git revisions", "\n".join(lines)]
