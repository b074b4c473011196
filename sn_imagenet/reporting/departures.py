"""Departures from the paper's protocol, as recorded by the runs, gathered over runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sn_imagenet.reporting.cells import cell_label
from sn_imagenet.reporting.paper import in_paper_order
from sn_imagenet.runs import Run

LEARNING_RATE = "initial learning rate"
_PAPERS_BATCH = 256  # samples per step at (8,32), to which the paper's learning rate applies
_NAMED_CELLS = 4
_NAMED_VALUES = 8


@dataclass(frozen=True)
class Departure:
    """One item of the protocol: the paper's value, and what ``runs`` of ``total`` used instead."""

    item: str
    paper: str
    ours: str
    runs: tuple[Run, ...]
    total: int

    @property
    def by_all(self) -> bool:
        """Whether all runs depart in this way."""
        return len(self.runs) == self.total

    @property
    def which(self) -> str:
        """``all 9``, or ``3 of 9: BN (8,1), GN (8,1), SN (8,1)``."""
        if self.by_all:
            return f"all {self.total}" if self.total > 1 else "the only one"
        cells = list(dict.fromkeys(f"{cell_label(r.cell)} {r.cell.setting}" for r in self.runs))
        names = cells[:_NAMED_CELLS]
        if len(cells) > _NAMED_CELLS:
            names.append(f"{len(cells) - _NAMED_CELLS} more cells")
        return f"{len(self.runs)} of {self.total}: {', '.join(names)}"


def gather_departures(runs: Sequence[Run]) -> list[Departure]:
    """The departures of the runs that have ended, those of all runs first. If all learning
    rates are the base rate x batch / 256 (linear scaling), they are one departure, not one per
    setting; and so are more than 8 values of one item, such as the architectures of a search."""
    ended = [run for run in runs if run.evaluations or run.departures]
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in ended:
        for departure in dict.fromkeys(run.departures):
            groups.setdefault(departure, []).append(run)
    rates = {group: groups[group] for group in groups if group[0] == LEARNING_RATE}
    bases = {_linear_scaling(run) for run in ended}
    if rates and None not in bases and len(bases) == 1:
        papers = next(iter(rates))[1]
        ours = {run.cell.setting: rate for (_, _, rate), of in rates.items() for run in of}
        settings = in_paper_order({run.cell.setting for run in ended})
        values = ", ".join(f"{ours.get(s, papers)} at {s}" for s in settings)
        rule = f"{bases.pop():g} x batch / {_PAPERS_BATCH}: {values}"
        groups = {group: of for group, of in groups.items() if group not in rates}
        groups[LEARNING_RATE, papers, rule] = ended
    for item, number in Counter(item for item, _, _ in groups).items():
        if number > _NAMED_VALUES:
            several = [group for group in groups if group[0] == item]
            of = [run for group in several for run in groups.pop(group)]
            groups[item, several[0][1], f"{number} values, in result.json of each run"] = of
    departures = [Departure(*key, tuple(group), len(ended)) for key, group in groups.items()]
    return sorted(departures, key=lambda departure: not departure.by_all)


def _linear_scaling(run: Run) -> float | None:
    """The run's base rate if its learning rate follows linear scaling, else None."""
    scale = run.cell.setting.gpus * run.cell.setting.samples_per_gpu / _PAPERS_BATCH
    try:
        base = float(run.config["protocol"]["base_lr"])
        ours = [float(rate) for item, _, rate in run.departures if item == LEARNING_RATE]
    except (KeyError, TypeError, ValueError):
        return None
    return base if abs((ours or [base])[-1] - base * scale) <= 1e-9 * base else None


def departure_notes(runs: Sequence[Run]) -> list[str]:
    """Notes below a table: one line for the departures of all runs, one for each other."""
    departures = gather_departures(runs)
    common = [f"{d.item}: {d.ours} (paper: {d.paper})" for d in departures if d.by_all]
    notes = [f"Departures of all runs from the paper: {'; '.join(common)}."] if common else []
    return notes + [
        f"Departure of {d.which}: {d.item}: {d.ours} (paper: {d.paper})."
        for d in departures
        if not d.by_all
    ]
