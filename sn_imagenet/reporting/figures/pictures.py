"""Pictures: what the networks of each method make of content and style (Fig. 9), and the objects
that detectors find beside the true ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.image import imread

from sn_imagenet.reporting.figures.series import FigureData, Series
from sn_imagenet.reporting.figures.style import PAGE
from sn_imagenet.reporting.study import Study

_FIRST = ("in", "sn")  # as in the paper, then the others
_ROWS = 4  # of found objects


def figure9(study: Study) -> FigureData | None:
    """A row for each image that all methods have stylized (``scripts/stylize.py``)."""
    return _pictures(study, "stylized", ("content", "style"))


def found(study: Study) -> FigureData | None:
    """The true objects of a few images, and those that each method finds (``scripts/detect.py``
    with annotations and without ``--out``)."""
    data = _pictures(study, "detected", ("truth",))
    return data and replace(data, panels=dict(islice(data.panels.items(), _ROWS)))


def _pictures(study: Study, folder: str, columns: tuple[str, ...]) -> FigureData | None:
    """A row for each image of which every method has a picture, by its first run with a ``folder``;
    None without any. Before these are the ``columns``, the image in the folder ``content`` and, if
    named, ``style.png``. A row is a panel with a series for each picture, whose ``style`` has its
    file."""
    folders: dict[str, Path] = {}
    names: dict[str, str] = {}
    for (norm, setting), cell in study.drawn.items():
        for run in cell.runs:
            if (run.path / folder).is_dir() and norm not in folders:
                folders[norm] = run.path / folder
                several = len(study.drawn_settings) > 1
                names[norm] = study.cell_name(norm, setting) if several else study.label(norm)
    if not folders:
        return None
    methods = sorted(folders, key=lambda norm: (norm not in _FIRST, norm))
    titles, first = [*columns, *(names[norm] for norm in methods)], folders[methods[0]]
    rows = {}
    for content in sorted((first / "content").rglob("*.png")):
        name = content.relative_to(first / "content").as_posix()
        before = [content, first / "style.png"][: len(columns)]
        files = [*before, *(folders[norm] / name for norm in methods)]
        if all(map(Path.is_file, files)):
            shown = zip(titles, files, strict=True)
            rows[name] = [Series(title, [], [], style={"file": file}) for title, file in shown]
    return FigureData("", "", rows, titles) if rows else None


def draw(data: FigureData) -> Figure:
    """Draw the pictures in rows."""
    side = PAGE / len(data.ticks)
    figure = Figure(figsize=(PAGE, 0.72 * side * len(data.panels) + 0.2))
    grid = figure.subplots(len(data.panels), len(data.ticks), squeeze=False)
    for row, pictures in zip(grid, data.panels.values(), strict=True):
        for axes, picture in zip(row, pictures, strict=True):
            axes.imshow(imread(picture.style["file"]))
            axes.set_axis_off()
            axes.set_anchor("N")
    for axes, title in zip(grid[0], data.ticks, strict=True):
        axes.set_title(title)
    figure.tight_layout(pad=0.2)
    return figure
