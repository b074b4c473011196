"""The data that a figure is drawn from, and its file ``figN.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

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
    halves = [stdev(seeds) if len(seeds) > 1 else None for seeds in values]
    pairs = list(zip(means, halves, strict=True))
    return (
        [None if half is None else mean - half for mean, half in pairs],
        [None if half is None else mean + half for mean, half in pairs],
    )


def draw_curves(axes: Axes, series: Sequence[Series], count: bool = True) -> None:
    """Draw means and bands over epochs. ``count``: append the number of seeds to the labels."""
    light_grid(axes)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for one in series:
        _draw_curve(axes, one, count)


def _draw_curve(axes: Axes, series: Series, count: bool) -> None:
    seeds = f" ({series.seeds} seeds)" if count and (series.seeds or 1) > 1 else ""
    mark = "o" if len(series.x) < 3 else ""  # a line through one point is invisible
    options = {"label": series.label + seeds, "marker": mark, "ms": 3, **series.style}
    (line,) = axes.plot(series.x, series.y, **options)
    if series.low:
        ends = np.array([series.low, series.high], dtype=float)
        axes.fill_between(series.x, *ends, color=line.get_color(), alpha=0.18, lw=0)


def validation_under(statistics: str) -> Callable[[Epoch], float | None]:
    """Read an epoch's validation score under ``statistics``."""
    return lambda epoch: epoch.validation.get(statistics)


def first_middle_last(settings: Sequence[Setting]) -> list[Setting]:
    """The first, middle and last setting, for figures with a panel per setting."""
    indices = (0, len(settings) // 2, len(settings) - 1)
    return [settings[i] for i in dict.fromkeys(indices)]
