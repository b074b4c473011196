"""Fig. 6: (a) the losses of stylization, (b) the validation accuracy of architecture search."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from sn_imagenet.reporting.cells import score_heading
from sn_imagenet.reporting.figures.learning import by_method, side_by_side
from sn_imagenet.reporting.figures.series import FigureData, over_epochs
from sn_imagenet.reporting.figures.style import COLUMN, method_style, unstyled
from sn_imagenet.reporting.study import Study
from sn_imagenet.reporting.stylization import loss_curve

_LOSSES = {"total": "loss", "style": "style", "feature": "feature"}  # title -> key of a row


def figure6a(study: Study) -> FigureData | None:
    """A panel for the total, the style and the feature loss: a curve for each method (and setting,
    if there are several), the mean over seeds with a band of one standard deviation."""
    several = len(study.drawn_settings) > 1
    panels = {
        title: [
            series
            for (norm, setting), cell in study.drawn.items()
            for series in over_epochs(
                [loss_curve(run, key) for run in cell.runs],
                lambda point: point.train,
                f"{study.label(norm)} {setting}" if several else study.label(norm),
                color=method_style(norm, unstyled(study.drawn_methods))["color"],
            )
        ]
        for title, key in _LOSSES.items()
    }
    if not panels["total"]:
        return None
    return FigureData("iteration", "training loss", panels, lower_is_better=True)


def figure6b(study: Study) -> FigureData | None:
    """A curve per method, with a band of one standard deviation over seeds; a panel per setting."""
    settings = study.drawn_settings
    panels = {str(setting): by_method(study, setting, training=False) for setting in settings}
    heading = score_heading(study.score)
    return FigureData(study.x_label, heading, panels) if any(panels.values()) else None


def draw_figure6(data: FigureData) -> Figure:
    """Draw the panels side by side; losses are logarithmic."""
    figure = Figure(figsize=(max(COLUMN, 2.36 * len(data.panels)), 2.6))
    panels = side_by_side(figure, data)
    for axes in panels:
        if data.lower_is_better:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    panels[0].legend()
    figure.tight_layout(w_pad=0.8)
    return figure
