"""The published numbers, read from ``results/paper.yaml``, and the order they are shown in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sn_imagenet.config import TABLE_2_SETTINGS
from sn_imagenet.errors import UserError
from sn_imagenet.runs import Setting

# They are not sorted by any rule: keep their order.
PAPER_SETTINGS = tuple(map(Setting.parse, TABLE_2_SETTINGS))


def in_paper_order(settings: set[Setting]) -> list[Setting]:
    """The paper's settings in its order, then the others by GPUs and samples, largest first."""
    ours = sorted(settings - set(PAPER_SETTINGS), reverse=True)
    return [s for s in PAPER_SETTINGS if s in settings] + ours


@dataclass(frozen=True)
class Published:
    """One published number: top-1 in percent, None where the source says that there is none."""

    method: str
    setting: Setting
    top1: float | None
    source: str
    note: str = ""


@dataclass(frozen=True)
class Paper:
    """The paper's numbers (``cells``), those of other sources for the same cells
    (``elsewhere``), and SN's under different test statistics (``statistics``: the note says which).

    The numbers belong to one task, ``data`` and ``model``; ``label`` names it in words.
    """

    data: str
    model: str
    label: str
    cells: tuple[Published, ...]
    elsewhere: tuple[Published, ...]
    statistics: tuple[Published, ...]

    def cell(self, method: str, setting: Setting) -> Published | None:
        """The paper's entry for a cell, None where the paper is silent."""
        return next((c for c in self.cells if (c.method, c.setting) == (method, setting)), None)

    def top1(self, method: str, setting: Setting) -> float | None:
        """The paper's top-1 in percent, None where there is none."""
        entry = self.cell(method, setting)
        return entry.top1 if entry else None

    def is_task(self, data: str, model: str) -> bool:
        """Whether a difference from the paper's numbers means something."""
        return (data, model) == (self.data, self.model)


def read_paper(file: Path) -> Paper:
    """Read ``results/paper.yaml``.

    Raises:
        UserError: the file is missing or malformed; names it.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        task, statistics = content["task"], content["statistics"]
        return Paper(
            data=task["data"],
            model=task["model"],
            label=task["label"],
            cells=_published(content["paper"]),
            elsewhere=_published(content["elsewhere"]),
            statistics=tuple(
                Published(
                    statistics["method"],
                    Setting.parse(statistics["setting"]),
                    float(top1),
                    statistics["source"],
                    words,
                )
                for words, top1 in statistics["top1"].items()
            ),
        )
    except OSError as error:
        raise UserError(f"{file}: cannot read the paper's numbers: {error.strerror}") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: not a file of published numbers: {error!r}") from error


def _published(rows: list[dict[str, Any]]) -> tuple[Published, ...]:
    return tuple(
        Published(
            method=row["method"],
            setting=Setting.parse(name),
            top1=None if top1 is None else float(top1),
            source=row["source"],
            note=row.get("notes", {}).get(name, ""),
        )
        for row in rows
        for name, top1 in row["top1"].items()
    )
