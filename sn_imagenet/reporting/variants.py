"""What moves SN - BN: a change of the protocol, one at a time, or another network.

The runs of all variants lie below one folder. What they differ in is read from their configs, so a
variant has no name of its own; the one that most runs share is what the others are compared with.
Networks are compared with the first of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sn_imagenet.reporting.accuracy import minus
from sn_imagenet.reporting.cells import MISSING, OF_A_CELL, Summary, experiment, summarize
from sn_imagenet.reporting.paper import in_paper_order
from sn_imagenet.reporting.render import Grid, Row, half_up, rounded
from sn_imagenet.reporting.statistics import Estimate, contrast
from sn_imagenet.reporting.task import Report, Task
from sn_imagenet.runs import Run, Setting

BN_AND_SN = ("bn", "sn")
_OWN_ARGUMENTS = "norm.args."
# BN has no lambdas.
_OF_SN = (_OWN_ARGUMENTS, "protocol.lambda_weight_decay")
# Chosen by the setting (SN is without BN at one sample): no change of the protocol.
_CHOSEN = "norm.args.omega"
BATCH_AVERAGE = "batch_average"

Changes = Mapping[str, str]  # config key -> value as JSON, of what differs from most runs


@dataclass(frozen=True)
class Variant:
    """A change of the protocol, or a network, at one setting: both methods, and how far SN - BN
    moves."""

    setting: Setting
    label: str
    bn: Summary
    sn: Summary
    base: tuple[Summary, Summary] | None  # BN and SN that it is compared with; None for themselves

    @property
    def difference(self) -> Estimate | None:
        """SN - BN over seeds (Welch)."""
        return _contrast([self.sn, self.bn], [1.0, -1.0])

    @property
    def move(self) -> Estimate | None:
        """(SN - BN) of the variant minus that of the base (Welch over the four cells)."""
        if self.base is None:
            return None
        if self.sn is self.base[1]:  # the same runs: they cancel
            return _contrast([self.base[0], self.bn], [1.0, -1.0])
        if self.bn is self.base[0]:
            return _contrast([self.sn, self.base[1]], [1.0, -1.0])
        return _contrast([self.sn, self.bn, *self.base[::-1]], [1.0, -1.0, -1.0, 1.0])


def variants_of(task: Task) -> list[Variant]:
    """Those of a task, setting by setting in the paper's order, most runs' own first. A change in
    SN's arguments or logits alone stands beside the BN of most runs; BN evaluated by the batch
    average stands beside their SN."""
    runs = [run for run in task.runs if run.cell.norm in BN_AND_SN and run.config]
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
            bn, sn = (_of_method(of_variant, norm) for norm in BN_AND_SN)
            own = all(key.startswith(_OF_SN) for key, _ in items)
            label = ", ".join(f"{key}={value}" for key, value in items)
            found.append(Variant(setting, label, bn if bn.runs or not own else base[0], sn, base))
        by_batch = summarize([r for r in plain if r.cell.norm == "bn"], BATCH_AVERAGE)
        if by_batch.values:
            found.append(Variant(setting, "BN by batch average", by_batch, base[1], base))
    return found


def networks_of(task: Task) -> list[Variant]:
    """Each network of the task's runs at each setting, in the order of the numbers in their names
    (``resnet14_mini`` before ``resnet50_mini``), compared with the first."""
    runs = [run for run in task.runs if run.cell.norm in BN_AND_SN]
    found: list[Variant] = []
    for setting in in_paper_order({run.cell.setting for run in runs}):
        base: tuple[Summary, Summary] | None = None
        at_setting = [run for run in runs if run.cell.setting == setting]
        for model in sorted({run.cell.model for run in at_setting}, key=_by_number):
            of_model = [run for run in at_setting if run.cell.model == model]
            bn, sn = (_of_method(of_model, norm) for norm in BN_AND_SN)
            found.append(Variant(setting, model, bn, sn, base))
            base = base or (bn, sn)
    return found


def variants_grid(task: Task, report: Report) -> Grid | None:
    """SN - BN under each change, and by how much the change moves it; None where the runs of the
    task have all one protocol."""
    del report
    variants = variants_of(task)
    if len({v.label for v in variants}) < 3:  # BN by batch average is there in any study
        return None
    return _grid(
        variants,
        f"What moves SN-BN on {task.title}: top-1 (%), one change of the protocol a row.",
        (
            "As most runs: the protocol that the other rows change in what they name.",
            _INTERVALS,
            "A change that concerns SN alone stands beside the BN of the first row, BN by batch "
            "average beside its SN.",
        ),
    )


def networks_grid(task: Task, report: Report) -> Grid | None:
    """SN - BN of each network, and by how much that is another than the first one's; None with a
    single network."""
    del report
    if len({run.cell.model for run in task.runs}) < 2:
        return None
    return _grid(networks_of(task), f"SN-BN by network on {task.title}: top-1 (%).", (_INTERVALS,))


def variants_rows(task: Task, report: Report) -> list[dict[str, object]]:
    """The rows of the CSV, in percent."""
    del report
    return [_row(task.data, task.model, v, {"change": v.label}) for v in variants_of(task)]


def networks_rows(task: Task, report: Report) -> list[dict[str, object]]:
    """The rows of the CSV, in percent."""
    del report
    return [_row(task.data, v.label, v, {}) for v in networks_of(task)]


def variants_warnings(variants: Sequence[Variant], report: Report) -> list[str]:
    """One line for each cell that is not averaged."""
    first: dict[int, tuple[Variant, Summary]] = {}  # two rows may show one cell
    for v in variants:
        for cell in (v.bn, v.sn):
            if cell.conflict:
                first.setdefault(id(cell), (v, cell))
    return [
        f"{v.label} {v.setting}: not averaged, the runs are not seeds of one experiment: "
        f"{cell.conflict}: {', '.join(report.folders(cell.runs))}"
        for v, cell in first.values()
    ]


_INTERVALS = (
    "Mean ± sample standard deviation (number of seeds). Brackets: Welch's 95 % interval over "
    "seeds, of SN-BN and of its difference from the first row of its setting; none below two "
    "seeds. No correction for the number of rows."
)


def _grid(variants: Sequence[Variant], caption: str, notes: tuple[str, ...]) -> Grid:
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
        caption=caption,
        columns=("setting", "BN", "SN", "SN-BN", "moves it by"),
        rows=tuple(rows),
        notes=notes,
    )


def _row(data: str, model: str, v: Variant, more: dict[str, object]) -> dict[str, object]:
    return {
        "data": data,
        "model": model,
        "setting": v.setting.name,
        **more,
        "bn": rounded(v.bn.mean),
        "bn_seeds": len(v.bn.values),
        "sn": rounded(v.sn.mean),
        "sn_seeds": len(v.sn.values),
        **_entry("difference", v.difference),
        **_entry("move", v.move),
    }


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


def _by_number(model: str) -> tuple[list[int], str]:
    return [int(digits) for digits in re.findall(r"\d+", model)], model


def _of_method(runs: Sequence[Run], norm: str) -> Summary:
    return summarize([run for run in runs if run.cell.norm == norm])


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
