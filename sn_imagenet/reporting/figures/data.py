"""The data for the figures of one study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.cells import Summary, by_cell, method_label, summarize
from sn_imagenet.reporting.curves import Epoch, read_epochs
from sn_imagenet.reporting.paper import in_paper_order
from sn_imagenet.runs import Run, Setting

_ORDER = ("bn", "gn", "sn")


@dataclass(frozen=True)
class FigureData:
    """The cells of one data set and network by (norm, setting), without conflicting ones, and the
    epochs of each seed that has any, finished or not."""

    cells: dict[tuple[str, Setting], Summary]
    curves: dict[tuple[str, Setting], list[list[Epoch]]]

    @property
    def norms(self) -> list[str]:
        """BN, GN and SN, as in the paper, then the others."""
        norms = {norm for norm, _setting in self.cells}
        return [n for n in _ORDER if n in norms] + sorted(norms - set(_ORDER))

    @property
    def settings(self) -> list[Setting]:
        """In the paper's order."""
        return in_paper_order({setting for _norm, setting in self.cells})

    def cell(self, norm: str, setting: Setting) -> Summary:
        """The seeds of a cell; empty if it was not run."""
        return self.cells.get((norm, setting), Summary((), ()))

    def validation(self, norm: str, setting: Setting) -> Callable[[Epoch], float | None]:
        """A function that gives an epoch's top-1: under the statistics that tables use for the cell
        if every seed was validated under them, else under the statistics of every epoch."""
        used = {run.statistics for run in self.cell(norm, setting).runs}
        name = used.pop() if len(used) == 1 else ""
        curves = self.curves.get((norm, setting), [])
        validated = all(any(name in epoch.validation for epoch in curve) for curve in curves)

        def of_epoch(epoch: Epoch) -> float | None:
            if validated:
                return epoch.validation.get(name)
            return next(iter(epoch.validation.values()), None)

        return of_epoch


def first_middle_last(settings: Sequence[Setting]) -> list[Setting]:
    """The first, middle and last setting, for figures with a panel per setting."""
    indices = (0, len(settings) // 2, len(settings) - 1)
    return [settings[i] for i in dict.fromkeys(indices)]


def gather(runs: Sequence[Run]) -> tuple[FigureData, list[str]]:
    """The figure data of one study's runs, and one line for each cell or run that is left out."""
    cells: dict[tuple[str, Setting], Summary] = {}
    curves: dict[tuple[str, Setting], list[list[Epoch]]] = {}
    warnings: list[str] = []
    for cell, seeds in by_cell(runs).items():
        summary = summarize(seeds)
        key = (cell.norm, cell.setting)
        if summary.conflict:
            warnings.append(
                f"{cell.data}, {cell.model}, {method_label(cell.norm)} {cell.setting}: not drawn, "
                f"the runs are not seeds of one experiment: {summary.conflict}: "
                + ", ".join(str(run.path) for run in seeds)
            )
            continue
        cells[key], curves[key] = summary, []
        for run in seeds:
            try:
                epochs = read_epochs(run)
            except UserError as error:
                warnings.append(str(error))
            else:
                curves[key] += [epochs] if epochs else []
    return FigureData(cells, curves), warnings
