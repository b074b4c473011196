"""Fig. 2: learning curves."""

from __future__ import annotations

from matplotlib.figure import Figure

from sn_imagenet.reporting.cells import method_label, score_heading
from sn_imagenet.reporting.figures.series import FigureData, Series, draw_curves, over_epochs
from sn_imagenet.reporting.figures.style import DASHES, PAGE, method_style, unstyled
from sn_imagenet.reporting.study import Study
from sn_imagenet.runs import Setting

PAPERS_SETTINGS = (Setting(8, 32), Setting(8, 2))
_ORDERED = ("#000000", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7")


def figure2(study: Study) -> FigureData | None:
    """(a) SN's validation curves at all settings; (b), (c) all methods at two settings, training
    dashed and validation solid. Bands: one standard deviation over seeds."""
    methods = study.drawn_methods
    settings = [
        s for s in study.drawn_settings if any(study.curves.get((m, s), []) for m in methods)
    ]
    if not settings:
        return None
    # The paper's (8,32) and (8,2), or else the most and the fewest samples per GPU.
    by_samples = sorted(settings, key=lambda s: (s.samples_per_gpu, s.gpus))
    pair = [
        p if p in settings else by_samples[i] for p, i in zip(PAPERS_SETTINGS, (-1, 0), strict=True)
    ]
    norm = "sn" if "sn" in methods else methods[-1]
    panels = {f"(a) {method_label(norm)}, validation": _by_setting(study, norm, settings)}
    for letter, setting in zip("bc", dict.fromkeys(pair), strict=False):
        panels[f"({letter}) {setting}, dashed: training"] = _by_method(study, setting)
    heading, lower = score_heading(study.score), not study.score.higher_is_better
    return FigureData(study.x_label, heading, panels, lower_is_better=lower)


def _by_setting(study: Study, norm: str, settings: list[Setting]) -> list[Series]:
    series = []
    for i, setting in enumerate(settings):
        style = {"color": _ORDERED[i % 7], "ls": DASHES[i // 7 % 4]}
        curves, value = study.curves.get((norm, setting), []), study.validation(norm, setting)
        series += over_epochs(curves, value, str(setting), **style)
    return series


def _by_method(study: Study, setting: Setting) -> list[Series]:
    series = []
    for norm in study.drawn_methods:
        curves, label = study.curves.get((norm, setting), []), method_label(norm)
        color = method_style(norm, unstyled(study.drawn_methods))["color"]
        series += over_epochs(curves, study.validation(norm, setting), label, color=color)
        style = {"color": color, "ls": DASHES[1], "lw": 0.9, "label": "_"}  # not in the legend
        series += over_epochs(curves, lambda epoch: epoch.train, f"{label}, training", **style)
    return series


def draw_figure2(data: FigureData) -> Figure:
    """Draw the panels side by side."""
    figure = Figure(figsize=(PAGE, 2.6))
    panels = figure.subplots(1, len(data.panels))
    corner = "upper right" if data.lower_is_better else "lower right"
    for axes, (title, series) in zip(panels, data.panels.items(), strict=True):
        is_first = axes is panels[0]
        draw_curves(axes, series, count=not is_first)
        axes.set_title(title)
        axes.set_xlabel(data.x)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc=corner, fontsize=6.5, ncols=2 if is_first else 1)
    panels[0].set_ylabel(data.y)
    figure.tight_layout(w_pad=0.8)
    return figure
