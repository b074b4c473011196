"""Report of a single run: its top-1 table and, for SN, figures of its importance weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sn_imagenet.reporting.figures.files import plot_run
from sn_imagenet.reporting.tables import top1_table
from sn_imagenet.runs import RunDirectory, write_text


def report_run(result: dict[str, Any], run_dir: str | Path) -> None:
    """Write ``top1.md`` and the figures of one run. Print the table and the paths.

    Raises:
        UserError: a file cannot be written.
    """
    report_runs({Path(run_dir): result})


def report_runs(results: Mapping[Path, dict[str, Any]], table: Path | None = None) -> None:
    """Write ``top1.md`` and the figures into each run's directory. Print one table of all runs.

    Args:
        results: run directory -> contents of its ``result.json``.
        table: file to which the table of all runs is also written, if any.

    Raises:
        UserError: a file cannot be written.
    """
    written: list[Path] = []
    for run_dir, result in results.items():
        written.append(write_text(RunDirectory(run_dir).top1_table, top1_table([result])))
        written += plot_run(result, run_dir)
    combined = top1_table(list(results.values()))
    if table is not None:
        written.append(write_text(table, combined, "table="))
    print(combined)
    for path in written:
        print(path)
