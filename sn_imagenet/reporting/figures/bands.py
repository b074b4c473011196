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
    """Draw the mean over seeds by epoch, and a band of one standard deviation. Only epochs that all
    seeds have reached are drawn, because the mean would jump where one seed ends.
    ``count``: append the number of seeds to the label.
    """
    per_seed = [
        {epoch.number: v for epoch in curve if (v := value(epoch)) is not None} for curve in curves
    ]
    per_seed = [values for values in per_seed if values]
    if not per_seed:
        return
    epochs = sorted(set.intersection(*(set(values) for values in per_seed)))
    means = [fmean(values[e] for values in per_seed) for e in epochs]
    seeds = f" ({len(per_seed)} seeds)" if count and len(per_seed) > 1 else ""
    mark = "o" if len(epochs) < 3 else ""  # a line through one point is invisible
    (line,) = axes.plot(epochs, means, label=label + seeds, marker=mark, ms=3, **style)
    if len(per_seed) > 1:
        spread = [stdev([values[e] for values in per_seed]) for e in epochs]
        axes.fill_between(
            epochs,
            [m - s for m, s in zip(means, spread, strict=True)],
            [m + s for m, s in zip(means, spread, strict=True)],
            color=line.get_color(),
            alpha=0.18,
            lw=0,
        )


def validation_under(statistics: str) -> Callable[[Epoch], float | None]:
    """Read an epoch's validation top-1 under ``statistics``."""
    return lambda epoch: epoch.validation.get(statistics)
