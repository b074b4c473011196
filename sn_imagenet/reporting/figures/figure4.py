"""Fig. 4: the importance weights averaged over all layers, by setting."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import stdev

from matplotlib.figure import Figure

from sn_imagenet.reporting.cells import method_label
from sn_imagenet.reporting.curves import KIND_SYMBOLS
from sn_imagenet.reporting.figures.style import COLORS, COLUMN
from sn_imagenet.reporting.figures.weights import STACKING_ORDER, SettingWeights


def draw_figure4(settings: Sequence[SettingWeights]) -> Figure:
    """Fig. 4: panels for μ and σ, a group of bars per setting, each seed's mean as a dot and the
    standard deviation over seeds as a line. The bar of a member that is not in Omega (BN at (8,1))
    is left empty.
    """
    members = [m for m in STACKING_ORDER if any(m in w.layers[0].mean for w in settings)]
    width = 0.8 / len(members)
    figure = Figure(figsize=(max(COLUMN, 1.0 + 0.62 * len(settings)), 3.6))
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    tops: list[float] = []
    for axes, (kind, symbol) in zip(panels, KIND_SYMBOLS.items(), strict=True):
        means = [weights.layer_means(kind) for weights in settings]
        per_seed = [weights.layer_means_per_seed(kind) for weights in settings]
        for i, member in enumerate(members):
            offset = (i - (len(members) - 1) / 2) * width
            positions = [x for x, mean in enumerate(means) if member in mean]
            heights = [means[x][member] for x in positions]
            spread = [[seed[member] for seed in per_seed[x]] for x in positions]
            axes.bar(
                [x + offset for x in positions],
                heights,
                0.92 * width,
                yerr=[stdev(values) if len(values) > 1 else 0.0 for values in spread],
                error_kw={"lw": 0.8, "capsize": 0},
                color=COLORS[member],
                label=method_label(member),
            )
            dots = [(x + offset, v) for x, vs in zip(positions, spread, strict=True) for v in vs]
            if any(len(values) > 1 for values in spread):
                axes.plot(*zip(*dots, strict=True), "o", ms=1.8, mfc="white", mec="black", mew=0.4)
            tops += [v for values in spread for v in values]
        axes.set_ylabel(f"importance weight, {symbol}")
    panels[0].set_ylim(0, 1.12 * max(tops))
    labels = [str(weights.setting) for weights in settings]
    panels[1].set_xticks(range(len(settings)), labels)
    panels[1].set_xlim(-0.6, len(settings) - 0.4)
    panels[1].set_xlabel("(GPUs, samples per GPU)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="upper center", ncols=len(members))
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    return figure
