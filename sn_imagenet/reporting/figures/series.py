"""The data that a figure is drawn from, and its file ``figN.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sn_imagenet.reporting.cells import Summary
from sn_imagenet.reporting.curves import Epoch
from sn_imagenet.reporting.figures.style import light_grid
from sn_imagenet.runs import Setting

VERSION = 2
_DIGITS = 6  # significant digits: enough for readers, and equal on all machines
_WRITTEN = ("label", "x", "y", "low", "high", "seeds", "values")


@dataclass(frozen=True)
class Series:
    """One curve, or the bars of one color: ``y`` at each ``x`` (epochs, settings or layers).

    ``low``, ``high``: the ends of the interval or band at each ``x``, None where there is none.
    ``seeds``: the number of runs that ``y`` is the mean of. ``values``: the number of each run at
    each ``x``. ``style``: what drawing needs besides, which is not written to the file."""

    label: str
    x: Sequence[int | str]
    y: Sequence[float]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    seeds: int | None = None
    values: Sequence[Sequence[float]] = ()
    style: dict[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> list[list[float]] | None:
        """The distances from ``y`` to ``low`` and to ``high``, as matplotlib takes them."""
        sides = [zip(self.y, ends, strict=True) for ends in (self.low, self.high) if ends]
        return [[0.0 if end is None else abs(y - end) for y, end in side] for side in sides] or None


@dataclass(frozen=True)
class FigureData:
    """What a figure shows. ``x``, ``y``: the labels of its axes. ``panels``: title -> series, also
    without any. ``ticks``: all settings along the x axis."""

    x: str
    y: str
    panels: dict[str, list[Series]]
    ticks: Sequence[str] = ()
    lower_is_better: bool = False

    def to_json(self) -> str:
        """The content of ``figN.json``, version 2: ``series`` has a line for each, with its
        ``panel``. Keys that do not apply are left out."""
        head = {"version": VERSION, "x": self.x, "y": self.y, "ticks": list(self.ticks)}
        head["lower_is_better"] = self.lower_is_better
        series = [_entry(panel, one) for panel, group in self.panels.items() for one in group]
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in series)
        return f'{json.dumps(head, ensure_ascii=False)[:-1]}, "series": [\n{lines}\n]}}\n'


def _entry(panel: str, series: Series) -> dict[str, Any]:
    entry = {name: getattr(series, name) for name in _WRITTEN}
    shown = {name: _rounded(v) for name, v in entry.items() if v or name in ("x", "y")}
    return {"panel": panel, **shown} if panel else shown


def _rounded(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_rounded(one) for one in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def over_epochs(
    curves: Sequence[Sequence[Epoch]],
    value: Callable[[Epoch], float | None],
    label: str,
    /,
    **style: Any,
) -> list[Series]:
    """The mean over seeds by epoch, and a band of one standard deviation; empty without a value.
    Only epochs that all seeds have reached, because the mean would jump where one seed ends.
    ``curves``: one per seed."""
    per_seed = [
        {epoch.number: v for epoch in curve if (v := value(epoch)) is not None} for curve in curves
    ]
    per_seed = [values for values in per_seed if values]
    if not per_seed:
        return []
    epochs = sorted(set.intersection(*(set(values) for values in per_seed)))
    means = [fmean(values[e] for values in per_seed) for e in epochs]
    low, high = spread(means, [[values[e] for values in per_seed] for e in epochs])
    return [Series(label, epochs, means, low, high, len(per_seed), style=style)]


def spread(
    means: Sequence[float], values: Sequence[Sequence[float]]
) -> tuple[list[float | None], list[float | None]]:
    """One standard deviation over seeds below and above each mean, None where there is one seed;
    empty if there is one everywhere."""
    if all(len(seeds) < 2 for seeds in values):
        return [], []
    pairs = [(m, stdev(v) if len(v) > 1 else None) for m, v in zip(means, values, strict=True)]
    low, high = ([None if s is None else m + sign * s for m, s in pairs] for sign in (-1, 1))
    return low, high


def means_of(label: str, cells: Mapping[Any, Summary], style: dict[str, Any]) -> Series:
    """The mean of each cell with its 95 % interval over seeds, and the values of the seeds."""
    intervals = [cell.interval or (None, None) for cell in cells.values()]
    return Series(
        label,
        list(cells),
        [cell.mean or 0.0 for cell in cells.values()],
        [low for low, _ in intervals],
        [high for _, high in intervals],
        values=[cell.values for cell in cells.values()],
        style=style,
    )


def draw_means(axes: Axes, series: Series, x: Sequence[Any]) -> Any:
    """Draw means with intervals at ``x``; returns the line of the means."""
    options = {"ms": 4, "elinewidth": 0.8, "capsize": 1.5, **series.style}
    return axes.errorbar(x, series.y, yerr=series.errors, label=series.label, **options)[0]


def draw_curves(
    figure: Figure, data: FigureData, rows: int = 1, *, uncounted: Sequence[str] = (), **shared: Any
) -> Any:
    """Draw the means and bands of each panel over epochs, with the number of seeds in the labels
    except in the panels ``uncounted``. ``shared``: see :func:`matplotlib.pyplot.subplots`.

    Returns:
        The panels, an array [rows, columns] of axes.
    """
    panels = figure.subplots(rows, len(data.panels) // rows, squeeze=False, **shared)
    ticks = 6 if panels.shape[1] < 6 else 3  # else labels touch
    for axes, (title, series) in zip(panels.flat, data.panels.items(), strict=True):
        light_grid(axes)
        axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
        axes.set_title(title)
        for one in series:
            _draw_curve(axes, one, title not in uncounted)
    for axes in panels[-1]:
        axes.set_xlabel(data.x)
    panels[0, 0].set_ylabel(data.y)
    return panels


def _draw_curve(axes: Axes, series: Series, count: bool) -> None:
    seeds = f" ({series.seeds} seeds)" if count and (series.seeds or 1) > 1 else ""
    mark = "o" if len(series.x) < 3 else ""  # a line through one point is invisible
    options = {"label": series.label + seeds, "marker": mark, "ms": 3, **series.style}
    (line,) = axes.plot(series.x, series.y, **options)
    if series.low:
        ends = np.array([series.low, series.high], dtype=float)
        axes.fill_between(series.x, *ends, color=line.get_color(), alpha=0.18, lw=0)


def first_middle_last(settings: Sequence[Setting]) -> list[Setting]:
    """The first, middle and last setting, for figures with a panel per setting."""
    indices = (0, len(settings) // 2, len(settings) - 1)
    return [settings[i] for i in dict.fromkeys(indices)] if settings else []
