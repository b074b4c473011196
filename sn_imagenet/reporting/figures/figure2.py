"""Fig. 2: learning curves."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sn_imagenet.reporting.cells import method_label
from sn_imagenet.reporting.curves import Epoch
from sn_imagenet.reporting.figures.bands import draw_band
from sn_imagenet.reporting.figures.data import FigureData
from sn_imagenet.reporting.figures.style import (
    DASHES,
    PAGE,
    light_grid,
    method_style,
    unstyled,
)
from sn_imagenet.runs import Setting

PAPERS_SETTINGS = (Setting(8, 32), Setting(8, 2))
_ORDERED = ("#000000", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7")


def draw_figure2(data: FigureData) -> Figure | None:
    """(a) SN's validation curves at all settings; (b), (c) all methods at two settings, training
    dashed and validation solid. Bands: one standard deviation over seeds."""
    settings = [s for s in data.settings if any(data.curves.get((n, s)) for n in data.norms)]
    if not settings:
        return None
    # The paper's (8,32) and (8,2), or else the most and the fewest samples per GPU.
    by_samples = sorted(settings, key=lambda s: (s.samples_per_gpu, s.gpus))
    pair = [
        p if p in settings else by_samples[i] for p, i in zip(PAPERS_SETTINGS, (-1, 0), strict=True)
    ]
    figure = Figure(figsize=(PAGE, 2.6))
    first, *rest = figure.subplots(1, 1 + len(dict.fromkeys(pair)))
    _draw_settings(first, data, settings)
    for letter, axes, setting in zip("bc", rest, dict.fromkeys(pair), strict=False):
        _draw_methods(axes, data, setting)
        axes.set_title(f"({letter}) {setting}, dashed: training")
    for axes in (first, *rest):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        light_grid(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right", fontsize=6.5, ncols=2 if axes is first else 1)
    first.set_ylabel("top-1 (%)")
    figure.tight_layout(w_pad=0.8)
    return figure


def _draw_settings(axes: Axes, data: FigureData, settings: list[Setting]) -> None:
    norm = "sn" if "sn" in data.norms else data.norms[-1]
    for i, setting in enumerate(settings):
        curves = data.curves.get((norm, setting), [])
        style = {"color": _ORDERED[i % 7], "ls": DASHES[i // 7 % 4]}
        draw_band(axes, curves, data.validation(norm, setting), str(setting), count=False, **style)
    axes.set_title(f"(a) {method_label(norm)}, validation")


def _draw_methods(axes: Axes, data: FigureData, setting: Setting) -> None:
    others = unstyled(data.norms)

    def train(epoch: Epoch) -> float | None:
        return epoch.train

    for norm in data.norms:
        curves = data.curves.get((norm, setting), [])
        color = method_style(norm, others)["color"]
        label = method_label(norm)
        draw_band(axes, curves, data.validation(norm, setting), label, color=color)
        draw_band(axes, curves, train, "_", color=color, ls=DASHES[1], lw=0.9)
