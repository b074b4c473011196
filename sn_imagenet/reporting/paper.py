"""The published numbers from ``results/paper.yaml``, and the order of the paper's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sn_imagenet.config import TABLE_2_SETTINGS
from sn_imagenet.errors import UserError
from sn_imagenet.runs import Setting

# The paper's own order, which follows no rule.
PAPER_SETTINGS = tuple(map(Setting.parse, TABLE_2_SETTINGS))


def in_paper_order(settings: set[Setting]) -> list[Setting]:
    """The paper's settings in its order, then others by GPUs and samples, largest first."""
    ours = sorted(settings - set(PAPER_SETTINGS), reverse=True)
    return [s for s in PAPER_SETTINGS if s in settings] + ours


@dataclass(frozen=True)
class PublishedAccuracy:
    """One published number: top-1 in percent, None where the source states that there is none.
    ``by``: ``paper``, or ``published`` for another source."""

    top1: float | None
    by: str
    source: str
    note: str = ""


@dataclass(frozen=True)
class Paper:
    """The paper's numbers; for methods that it does not have, those of the first other source
    (``cells``); and SN's under different evaluation statistics in words (``averages``).

    All are for one data set and network, ``data`` and ``model``; ``label`` describes these.
    ``table1``: the entries of Table 1 as printed, by method and column. ``detection``: Tables 3, 4
    and 5 by name, as the file has them."""

    data: str = ""
    model: str = ""
    label: str = ""
    cells: Mapping[tuple[str, Setting], PublishedAccuracy] = field(default_factory=dict)
    averages: str = ""
    table1: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    detection: Mapping[str, Any] = field(default_factory=dict)

    def top1(self, method: str, setting: Setting) -> float | None:
        """The published top-1 in percent, None without a number."""
        entry = self.cells.get((method, setting))
        return entry.top1 if entry else None


NO_PAPER = Paper()  # nothing is published on these runs


def read_paper(file: Path | None) -> Paper:
    """Read ``results/paper.yaml``; None is :data:`NO_PAPER`.

    Raises:
        UserError: the file is missing or malformed; names it.
    """
    if file is None:
        return NO_PAPER
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        cells: dict[tuple[str, Setting], PublishedAccuracy] = {}
        papers = {row["method"] for row in content["paper"]}
        others = [row for row in content["elsewhere"] if row["method"] not in papers]
        for by, rows in {"paper": content["paper"], "published": others}.items():
            for row in rows:
                for name, top1 in row["top1"].items():
                    number = None if top1 is None else float(top1)
                    note = row.get("notes", {}).get(name, "")
                    entry = PublishedAccuracy(number, by, row["source"], note)
                    cells.setdefault((row["method"], Setting.parse(name)), entry)
        return Paper(
            **{key: content["task"][key] for key in ("data", "model", "label")},
            cells=cells,
            averages=str(content["averages"]),
            table1={row["method"]: row for row in content["table1"]["rows"]},
            detection=dict(content["detection"]),
        )
    except OSError as error:
        raise UserError(f"{file}: cannot read the paper's numbers: {error.strerror}") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: not a file of published numbers: {error!r}") from error
