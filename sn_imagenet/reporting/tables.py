"""All tables, from a folder of runs (Table 1: from the modules) to files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.command import Written
from sn_imagenet.reporting.curves import EPOCH_CHOICES
from sn_imagenet.reporting.detection import detection_table
from sn_imagenet.reporting.paper import read_paper
from sn_imagenet.reporting.render import Document
from sn_imagenet.reporting.study import RunCollection
from sn_imagenet.reporting.table1 import TakeCensus, table1
from sn_imagenet.reporting.table2 import averages, methods, table2
from sn_imagenet.reporting.variants import variants
from sn_imagenet.runs import write_text

# A new table of runs is one function and one line here. Table 1 describes the modules instead.
RUN_TABLES: dict[str, Callable[[RunCollection], Document]] = {
    "table2": table2,
    "methods": methods,
    "averages": averages,
    "variants": variants,
    "table3": partial(detection_table, "Table 3"),
    "table4": partial(detection_table, "Table 4"),
    "table5": partial(detection_table, "Table 5"),
}
TABLE_NAMES = ("table1", *RUN_TABLES)


def write_tables(
    runs_dir: Path,
    out: Path,
    paper_file: Path | None,
    only: Sequence[str] | None = None,
    census: TakeCensus | None = None,
    **options: Any,
) -> Written:
    """Write the tables ``only`` of :data:`TABLE_NAMES` (default: Tables 1 and 2) to
    ``<out>/<table>.md``, ``.tex`` and ``.csv``. What is printed has no sections beneath the tables,
    and with ``--brief`` no notes.

    Table 1 needs no runs, whose tasks it marks. By default it is left out without ``census``, and
    printed only if it was requested.

    Args:
        runs_dir: folder of the runs.
        paper_file: the published numbers; None leaves them out.
        census: takes the census of the modules for Table 1, see
            :func:`sn_imagenet.benchmark.census.census`.
        options: see :meth:`.RunCollection.read`.

    Raises:
        UserError: no runs, an unknown table, setting, method or epoch, a file that cannot be read
            or written.
    """
    names = list(only or ("table1", "table2")[0 if census else 1 :])
    known = TABLE_NAMES if census else tuple(RUN_TABLES)
    for name in names:
        if name not in known:
            raise UserError(f"table '{name}': expected one of {', '.join(known)}")
    if paper_file is None and {"table3", "table4", "table5"} & set(names):
        raise UserError(
            "--no-paper: the columns of Tables 3, 4 and 5 are the paper's; leave it out"
        )
    if (epoch := options.get("epoch", "final")) not in EPOCH_CHOICES:
        raise UserError(f"epoch '{epoch}': expected one of {', '.join(EPOCH_CHOICES)}")
    paper = read_paper(paper_file)
    collection, warnings = RunCollection((), runs_dir), list[str]()
    if RUN_TABLES.keys() & set(names) or any(runs_dir.rglob("result.json")):
        collection, warnings = RunCollection.read(runs_dir, paper, **options)
    paths: list[Path] = []
    shown = []
    for name in names:
        if census and name == "table1":
            document = table1(census(), paper.table1, collection.runs)
        else:
            document = RUN_TABLES[name](collection)
        if only or name in RUN_TABLES:
            shown.append(document)
        warnings += document.warnings
        forms = {"md": document.markdown, "tex": document.latex, "csv": document.csv}
        paths += [
            write_text(out / f"{name}.{form}", text, "--out")
            for form, text in forms.items()
            if text
        ]
    return Written(paths, warnings, *("\n".join(d.text(n) for d in shown) for n in (True, False)))
