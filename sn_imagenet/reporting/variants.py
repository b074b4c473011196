"""What moves SN - BN: the runs of one task whose protocol was changed, one change at a time.

The runs of all variants lie below one folder. What they differ in is read from their configs, so a
variant has no name of its own; the one that most runs share is what the others are compared with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sn_imagenet.reporting.accuracy import minus
from sn_imagenet.reporting.cells import MISSING, OF_A_CELL, Summary, experiment, summarise
from sn_imagenet.reporting.paper import in_paper_order
from sn_imagenet.reporting.render import Grid, Row, half_up, rounded
from sn_imagenet.reporting.statistics import Estimate, contrast
from sn_imagenet.reporting.task import Report, Task
from sn_imagenet.runs import Run, Setting

METHODS = ("bn", "sn")
_OWN_ARGUMENTS = "norm.args."
# Chosen by the setting (SN is without BN at one sample): no change of the protocol.
_CHOSEN = "norm.args.omega"
BATCH_AVERAGE = "batch_average"

Changes = Mapping[str, str]  # config key -> value as JSON, of what differs from most runs


@dataclass(frozen=True)
class Variant:
    """A change of the protocol at one setting: both methods, and how far SN - BN moves."""

    setting: Setting
    label: str
    bn: Summary
    sn: Summary
    base: tuple[Summary, Summary] | None  # BN and SN of most runs; None for those themselves

    @property
    def difference(self) -> Estimate | None:
        """SN - BN over seeds (Welch)."""
        return _contrast([self.sn, self.bn], [1.0, -1.0])

    @property
    def move(self) -> Estimate | None:
        """(SN - BN) of the variant minus that of most runs (Welch over the four cells)."""
        if self.base is None:
            return None
        if self.sn is self.base[1]:  # the same runs: they cancel
            return _contrast([self.base[0], self.bn], [1.0, -1.0])
        if self.bn is self.base[0]:
            return _contrast([self.sn, self.base[1]], [1.0, -1.0])
        return _contrast([self.sn, self.bn, *self.base[::-1]], [1.0, -1.0, -1.0, 1.0])


def variants_of(task: Task) -> list[Variant]:
    """Those of a task, setting by setting in the paper's order, most runs' own first. A change in
    SN's arguments alone stands beside the BN of most runs; BN evaluated by the batch average
    stands beside their SN."""
    runs = [run for run in task.runs if run.cell.norm in METHODS and run.config]
    changes = _changes(runs)
    found: list[Variant] = []
    for setting in in_paper_order({run.cell.setting for run in runs}):
        groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
        for run, changed in zip(runs, changes, strict=True):
            if run.cell.setting == setting:
                groups.setdefault(tuple(sorted(changed.items())), []).append(run)
        plain = groups.pop((), [])
        base = _of_method(plain, "bn"), _of_method(plain, "sn")
        found.append(Variant(setting, "as most runs", *base, None))
        for items, of_variant in sorted(groups.items()):
            bn, sn = (_of_method(of_variant, norm) for norm in METHODS)
            own = all(key.startswith(_OWN_ARGUMENTS) for key, _ in items)
            label = ", ".join(f"{key}={value}" for key, value in items)
            found.append(Variant(setting, label, bn if bn.runs or not own else base[0], sn, base))
        by_batch = summarise([r for r in plain if r.cell.norm == "bn"], BATCH_AVERAGE)
        if by_batch.values:
            found.append(Variant(setting, "BN by batch average", by_batch, base[1], base))
    return found


def variants_grid(task: Task, report: Report) -> Grid | None:
    """SN - BN under each change, and by how much the change moves it; None where the runs of the
    task have all one protocol."""
    del report
    variants = variants_of(task)
    if len({v.label for v in variants}) < 3:  # BN by batch average is there in any study
        return None
    rows = []
    for i, variant in enumerate(variants):
        cells = (
            str(variant.setting),
            variant.bn.text(),
            variant.sn.text(),
            _words(minus(variant.sn.mean, variant.bn.mean), variant.difference),
            _words(variant.move.effect, variant.move) if variant.move else MISSING,
        )
        rule = i > 0 and variant.setting != variants[i - 1].setting
        rows.append(Row(variant.label, cells, rule=rule))
    return Grid(
        caption=f"What moves SN-BN on {task.title}: top-1 (%), one change of the protocol a row.",
        columns=("setting", "BN", "SN", "SN-BN", "moves it by"),
        rows=tuple(rows),
        notes=(
            "As most runs: the protocol that the other rows change in what they name.",
            "Mean ± sample standard deviation (number of seeds). Brackets: Welch's 95 % interval "
            "over seeds, of SN-BN and of its difference from the first row of its setting; none "
            "below two seeds. No correction for the number of rows.",
            "A change of SN's own arguments stands beside the BN of the first row, BN by batch "
            "average beside its SN.",
        ),
    )


def variants_rows(task: Task, report: Report) -> list[dict[str, object]]:
    """The rows of the CSV, in percent."""
    del report
    return [
        {
            "data": task.data,
            "model": task.model,
            "setting": v.setting.name,
            "change": v.label,
            "bn": rounded(v.bn.mean),
            "bn_seeds": len(v.bn.values),
            "sn": rounded(v.sn.mean),
            "sn_seeds": len(v.sn.values),
            **_entry("difference", v.difference),
            **_entry("move", v.move),
        }
        for v in variants_of(task)
    ]


def _changes(runs: Sequence[Run]) -> list[Changes]:
    """Of each run, in what its protocol differs from most runs'."""
    items = [_protocol(run) for run in runs]
    keys = sorted(set().union(*items))
    most = {
        key: Counter(item.get(key, "null") for item in items).most_common(1)[0][0] for key in keys
    }
    return [
        {key: item.get(key, "null") for key in keys if item.get(key, "null") != most[key]}
        for item in items
    ]


def _protocol(run: Run) -> dict[str, str]:
    return {
        key: value
        for key, value in experiment(run).items()
        if key != _CHOSEN and (key.startswith(_OWN_ARGUMENTS) or not key.startswith(OF_A_CELL))
    }


def _of_method(runs: Sequence[Run], norm: str) -> Summary:
    return summarise([run for run in runs if run.cell.norm == norm])


def _contrast(cells: Sequence[Summary], coefficients: Sequence[float]) -> Estimate | None:
    return contrast([cell.values for cell in cells], coefficients)


def _words(effect: float | None, estimate: Estimate | None) -> str:
    if effect is None:
        return MISSING
    words = f"{half_up(effect, 1):+}"
    if estimate:
        low, high = (half_up(end, 1) for end in estimate.interval())
        words += f" [{low:+}, {high:+}]"
    return words


def _entry(name: str, estimate: Estimate | None) -> dict[str, object]:
    low, high = estimate.interval() if estimate else (None, None)
    effect = estimate.effect if estimate else None
    return {
        name: rounded(effect),
        f"{name}_ci95_low": rounded(low),
        f"{name}_ci95_high": rounded(high),
    }
