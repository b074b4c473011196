"""The published numbers from ``results/paper.yaml``, and the order of the paper's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    """One published number: top-1 in percent, None where the source states that there is none."""

    method: str
    setting: Setting
    top1: float | None
    source: str
    note: str = ""


@dataclass(frozen=True)
class Paper:
    """The paper's numbers (``cells``), other sources' numbers for the same cells (``elsewhere``),
    and SN's under different evaluation statistics in words (``averages``).

    All are for one data set and network, ``data`` and ``model``; ``label`` describes these.
    ``table1``: the entries of Table 1 as printed, by method and column. ``detection``: Tables 3, 4
    and 5 by name, as the file has them."""

    data: str
    model: str
    label: str
    cells: tuple[PublishedAccuracy, ...]
    elsewhere: tuple[PublishedAccuracy, ...]
    averages: str
    table1: Mapping[str, Mapping[str, str | None]]
    detection: Mapping[str, Any]

    def cell(self, method: str, setting: Setting) -> PublishedAccuracy | None:
        """The paper's entry for a cell; for a method that it does not have, the first of another
        source; None without an entry."""
        known = any(c.method == method for c in self.cells)
        entries = self.cells if known else self.elsewhere
        return next((c for c in entries if (c.method, c.setting) == (method, setting)), None)

    def top1(self, method: str, setting: Setting) -> float | None:
        """The paper's top-1 in percent, None without a number."""
        entry = self.cell(method, setting)
        return entry.top1 if entry else None

    def difference(self, first: str, second: str, setting: Setting) -> float | None:
        """``first`` minus ``second``; None where one of them has no number."""
        a, b = self.top1(first, setting), self.top1(second, setting)
        return None if a is None or b is None else a - b

    def matches(self, data: str, model: str) -> bool:
        """Whether data set and network are the paper's, so that differences are meaningful."""
        return (data, model) == (self.data, self.model)


NO_PAPER = Paper("", "", "", (), (), "", {}, {})  # nothing is published on these runs


def read_paper(file: Path | None) -> Paper:
    """Read ``results/paper.yaml``; None is :data:`NO_PAPER`.

    Raises:
        UserError: the file is missing or malformed; names it.
    """
    if file is None:
        return NO_PAPER
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        return Paper(
            **{key: content["task"][key] for key in ("data", "model", "label")},
            cells=_published(content["paper"]),
            elsewhere=_published(content["elsewhere"]),
            averages=str(content["averages"]),
            table1={row["method"]: row for row in content["table1"]["rows"]},
            detection=dict(content["detection"]),
        )
    except OSError as error:
        raise UserError(f"{file}: cannot read the paper's numbers: {error.strerror}") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: not a file of published numbers: {error!r}") from error


def _published(rows: list[dict[str, Any]]) -> tuple[PublishedAccuracy, ...]:
    return tuple(
        PublishedAccuracy(
            row["method"],
            Setting.parse(name),
            None if top1 is None else float(top1),
            row["source"],
            row.get("notes", {}).get(name, ""),
        )
        for row in rows
        for name, top1 in row["top1"].items()
    )
