"""Fig. 9: content, style, and what the networks of each method make of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.image import imread

from sn_imagenet.reporting.cells import method_label
from sn_imagenet.reporting.figures.series import FigureData
from sn_imagenet.reporting.figures.style import PAGE
from sn_imagenet.reporting.study import Study

_ORDER = ("in", "sn")  # as in the paper, then the others


@dataclass(frozen=True)
class Pictures(FigureData):
    """``rows``: the files of each row of pictures, below the titles ``ticks``."""

    rows: tuple[tuple[Path, ...], ...] = ()

    def to_json(self) -> str:
        content = {"columns": list(self.ticks), "rows": [row[0].name for row in self.rows]}
        return json.dumps(content, ensure_ascii=False) + "\n"


def figure9(study: Study) -> Pictures | None:
    """A row for each image that all methods have stylized (``scripts/stylize.py``), each by its
    first run with a folder ``stylized``; None without any."""
    found = [
        (norm, folder)
        for (norm, _), cell in reversed(study.drawn.items())
        for run in reversed(cell.runs)
        if (folder := run.path / "stylized").is_dir()
    ]
    folders = dict(sorted(found, key=lambda pair: (*(pair[0] != n for n in _ORDER), pair[0])))
    rows = []
    for folder in list(folders.values())[:1]:
        for content in sorted((folder / "content").rglob("*.png")):
            name = content.relative_to(folder / "content")
            row = (content, folder / "style.png", *(other / name for other in folders.values()))
            rows += [row] if all(file.is_file() for file in row) else []
    titles = ["content", "style", *map(method_label, folders)]
    return Pictures("", "", {}, titles, rows=tuple(rows)) if rows else None


def draw_figure9(data: FigureData) -> Figure:
    """Draw the pictures in rows."""
    assert isinstance(data, Pictures)
    side = PAGE / len(data.ticks)
    figure = Figure(figsize=(PAGE, 0.72 * side * len(data.rows) + 0.2))
    grid = figure.subplots(len(data.rows), len(data.ticks), squeeze=False)
    for axes, file in zip(grid.flat, (file for row in data.rows for file in row), strict=True):
        axes.imshow(imread(file))
        axes.set_axis_off()
        axes.set_anchor("N")
    for axes, title in zip(grid[0], data.ticks, strict=True):
        axes.set_title(title)
    figure.tight_layout(pad=0.2)
    return figure
