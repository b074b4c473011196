"""Curves over epochs with their spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes

from sn_imagenet.reporting.curves import Epoch

Curves = Sequence[Sequence[Epoch]]  # one per seed


def draw_band(
    axes: Axes,
    curves: Curves,
    value: Callable[[Epoch], float | None],
    label: str,
    *,
    count: bool = True,
    **style: Any,
) -> None:
    """The mean over seeds against the epoch, and a band of one standard deviation. Only epochs
    that every seed has reached: a mean over those ahead would bend where one of them ends.
    ``count``: the label says how many seeds.
    """
    of_seeds = [
        {epoch.number: v for epoch in curve if (v := value(epoch)) is not None} for curve in curves
    ]
    of_seeds = [values for values in of_seeds if values]
    if not of_seeds:
        return
    epochs = sorted(set.intersection(*(set(values) for values in of_seeds)))
    means = [fmean(values[e] for values in of_seeds) for e in epochs]
    seeds = f" ({len(of_seeds)} seeds)" if count and len(of_seeds) > 1 else ""
    mark = "o" if len(epochs) < 3 else ""  # a line of one point shows nothing
    (line,) = axes.plot(epochs, means, label=label + seeds, marker=mark, ms=3, **style)
    if len(of_seeds) > 1:
        spread = [stdev([values[e] for values in of_seeds]) for e in epochs]
        axes.fill_between(
            epochs,
            [m - s for m, s in zip(means, spread, strict=True)],
            [m + s for m, s in zip(means, spread, strict=True)],
            color=line.get_color(),
            alpha=0.18,
            lw=0,
        )


def under(statistics: str) -> Callable[[Epoch], float | None]:
    """Reads an epoch's validation top-1 under ``statistics``."""
    return lambda epoch: epoch.validation.get(statistics)
