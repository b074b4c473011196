"""Curves over epochs with their spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes

from sn_imagenet.reporting.curves import Epoch

Curves = Sequence[Sequence[Epoch]]  # one per seed


def draw_band(
    axes: Axes, curves: Curves, value: Callable[[Epoch], float | None], label: str, **style: Any
) -> bool:
    """The mean over seeds against the epoch, and a band of one standard deviation. Only epochs
    that every seed has reached: a mean over those ahead would bend where one of them ends.

    Returns:
        Whether there was anything to draw.
    """
    of_seeds = [
        {epoch.number: v for epoch in curve if (v := value(epoch)) is not None} for curve in curves
    ]
    of_seeds = [values for values in of_seeds if values]
    if not of_seeds:
        return False
    epochs = sorted(set.intersection(*(set(values) for values in of_seeds)))
    means = [fmean(values[e] for values in of_seeds) for e in epochs]
    seeds = f" ({len(of_seeds)} seeds)" if len(of_seeds) > 1 else ""
    few = "o" if len(epochs) < 3 and "marker" not in style else style.pop("marker", "")
    (line,) = axes.plot(epochs, means, label=label + seeds, marker=few, ms=3, **style)
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
    return bool(epochs)
