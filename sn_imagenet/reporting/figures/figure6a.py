"""Fig. 6(a): the losses of stylization over training."""

from __future__ import annotations

from matplotlib.figure import Figure

from sn_imagenet.reporting.cells import method_label
from sn_imagenet.reporting.figures.series import FigureData, draw_curves, over_epochs
from sn_imagenet.reporting.figures.style import PAGE, method_style, unstyled
from sn_imagenet.reporting.study import Study
from sn_imagenet.reporting.stylization import loss_curve

_LOSSES = {"total": "loss", "style": "style", "feature": "feature"}  # title -> key of a row


def figure6a(study: Study) -> FigureData | None:
    """A panel for the total, the style and the feature loss: a curve for each method (and setting,
    if there are several), the mean over seeds with a band of one standard deviation."""
    several = len({setting for _, setting in study.drawn}) > 1
    panels = {
        title: [
            series
            for (norm, setting), cell in study.drawn.items()
            for series in over_epochs(
                [loss_curve(run, key) for run in cell.runs],
                lambda point: point.train,
                f"{method_label(norm)} {setting}" if several else method_label(norm),
                color=method_style(norm, unstyled(study.drawn_methods))["color"],
            )
        ]
        for title, key in _LOSSES.items()
    }
    if not panels["total"]:
        return None
    return FigureData("iteration", "training loss", panels, lower_is_better=True)


def draw_figure6a(data: FigureData) -> Figure:
    """Draw the panels side by side, with logarithmic losses."""
    figure = Figure(figsize=(PAGE, 2.6))
    panels = figure.subplots(1, len(data.panels))
    for axes, (title, series) in zip(panels, data.panels.items(), strict=True):
        draw_curves(axes, series)
        axes.set_title(title)
        axes.set_yscale("log")
        axes.set_xlabel(data.x)
    panels[0].set_ylabel(data.y)
    panels[0].legend()
    figure.tight_layout(w_pad=0.8)
    return figure
