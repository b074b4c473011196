"""Fig. 1(b): top-1 by setting."""

from __future__ import annotations

from matplotlib.figure import Figure

from sn_imagenet.reporting.cells import method_label
from sn_imagenet.reporting.figures.data import FigureData
from sn_imagenet.reporting.figures.style import (
    COLUMN,
    METHOD_COLORS,
    light_grid,
    method_style,
    unstyled,
)


def draw_figure1(data: FigureData) -> Figure | None:
    """Draw each method's mean by setting with its 95 % interval over seeds, each seed as a dot, and
    the ideal BN: BN at the setting with the most samples per GPU that was run, (8,32) in the paper,
    as a line over all settings. With a single setting there is no such line."""
    settings = [s for s in data.settings if any(data.cell(n, s).values for n in data.norms)]
    if not settings:
        return None
    figure = Figure(figsize=(max(COLUMN, 0.55 * len(settings) + 1.0), 2.6))
    axes = figure.subplots()
    light_grid(axes)
    others = unstyled(data.norms)
    drawn = [n for n in data.norms if any(data.cell(n, s).values for s in settings)]
    for i, norm in enumerate(drawn):
        offset = 0.09 * (i - (len(drawn) - 1) / 2)
        style = method_style(norm, others)
        cells = [(x + offset, data.cell(norm, s)) for x, s in enumerate(settings)]
        cells = [(x, cell) for x, cell in cells if cell.values]
        dots = [(x, value) for x, cell in cells for value in cell.values if len(cell.values) > 1]
        if dots:
            axes.plot(*zip(*dots, strict=True), ".", color=style["color"], ms=3.5, alpha=0.6)
        means = [cell.mean or 0.0 for _x, cell in cells]
        intervals = [cell.interval for _x, cell in cells]
        axes.errorbar(
            [x for x, _cell in cells],
            means,
            yerr=[
                [m - i[0] if i else 0.0 for m, i in zip(means, intervals, strict=True)],
                [i[1] - m if i else 0.0 for m, i in zip(means, intervals, strict=True)],
            ],
            label=method_label(norm),
            ms=4,
            elinewidth=0.8,
            capsize=1.5,
            **style,
        )
    of_bn = [s for s in settings if data.cell("bn", s).values]
    if of_bn and len(settings) > 1:
        ideal = max(of_bn, key=lambda s: (s.samples_per_gpu, s.gpus))
        axes.axhline(
            data.cell("bn", ideal).mean or 0.0,
            color=METHOD_COLORS["bn"],
            ls=(0, (4, 3)),
            lw=0.9,
            label=f"ideal BN: {ideal}",
        )
    if len(settings) == 1:
        axes.set_xlim(-0.6, 0.6)  # keeps the methods close together
    low, high = axes.get_ylim()
    values = [v for n in drawn for s in settings for v in data.cell(n, s).values]
    # An interval of two seeds is many times wider than the data, so it may be cut off.
    space = max(1.0, 0.15 * (max(values) - min(values)))
    axes.set_ylim(max(low, min(values) - 3 * space), min(high, max(values) + 3 * space, 101.0))
    axes.set_xticks(range(len(settings)), [str(s) for s in settings])
    axes.set_xlabel("(GPUs, samples per GPU)")
    axes.set_ylabel("top-1 (%)")
    figure.legend(*axes.get_legend_handles_labels(), loc="upper center", ncols=len(drawn) + 1)
    figure.tight_layout(rect=(0, 0, 1, 0.91))
    return figure
