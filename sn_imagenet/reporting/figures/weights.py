"""The importance weights of SN runs by setting, for Figs. 3 and 4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.cells import by_cell, method_label, summarize
from sn_imagenet.reporting.figures.style import COLORS
from sn_imagenet.reporting.paper import in_paper_order
from sn_imagenet.runs import FINISHED, LayerWeights, Run, Setting

STACKING_ORDER = tuple(COLORS)


@dataclass(frozen=True)
class SettingWeights:
    """The importance weights at one setting, averaged over ``seeds`` runs, in network order;
    ``per_seed``: those of each run."""

    setting: Setting
    seeds: int
    layers: tuple[LayerWeights, ...]
    per_seed: tuple[tuple[LayerWeights, ...], ...] = ()

    def layer_means(self, kind: str) -> dict[str, float]:
        """Member of Omega -> weight averaged over all layers; ``kind``: mean or variance."""
        return _mean_over_layers(self.layers, kind)

    def layer_means_per_seed(self, kind: str) -> list[dict[str, float]]:
        """:meth:`layer_means` of each run alone."""
        return [_mean_over_layers(layers, kind) for layers in self.per_seed]


def _mean_over_layers(layers: Sequence[LayerWeights], kind: str) -> dict[str, float]:
    members = getattr(layers[0], kind)
    return {m: fmean(getattr(layer, kind)[m] for layer in layers) for m in members}


def gather_weights(runs: Sequence[Run]) -> list[SettingWeights]:
    """The importance weights of finished runs by setting, mean over seeds, in the paper's order.

    Args:
        runs: runs of one data set, network and method. Runs without weights are skipped.

    Raises:
        UserError: the seeds of a setting are not of one experiment, or differ in their layers.
    """
    drawable = [run for run in runs if run.state == FINISHED and run.weights]
    gathered = [average_seeds(seeds) for seeds in by_cell(drawable).values()]
    order = in_paper_order({weights.setting for weights in gathered})
    return sorted(gathered, key=lambda weights: order.index(weights.setting))


def average_seeds(seeds: Sequence[Run]) -> SettingWeights:
    cell = seeds[0].cell
    conflict = summarize(seeds).conflict
    shapes = {tuple((w.name, *sorted(w.mean)) for w in run.weights) for run in seeds}
    if not conflict and len(shapes) > 1:
        conflict = "their layers or members of Omega differ"
    if conflict:
        folders = ", ".join(str(run.path) for run in seeds)
        raise UserError(
            f"{cell.data}, {cell.model}, {method_label(cell.norm)} {cell.setting}: not drawn, the "
            f"runs are not seeds of one experiment: {conflict}: {folders}"
        )
    layers = tuple(_average(layer) for layer in zip(*(run.weights for run in seeds), strict=True))
    per_seed = tuple(run.weights for run in seeds)
    return SettingWeights(cell.setting, len(seeds), layers, per_seed)


def _average(layer: Sequence[LayerWeights]) -> LayerWeights:
    mean = {m: fmean(w.mean[m] for w in layer) for m in layer[0].mean}
    variance = {m: fmean(w.variance[m] for w in layer) for m in layer[0].variance}
    return LayerWeights(layer[0].name, layer[0].stage, layer[0].conv, mean, variance)
