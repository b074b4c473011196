"""What moves SN - BN: one change of the protocol at a time, or another network.

The runs of all variants are below one folder, and their configs tell how they differ. Variants have
no names of their own and are compared with the protocol that most runs share. Networks are compared
with the first network.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sn_imagenet.reporting.cells import (
    CELL_KEYS,
    MISSING,
    Summary,
    experiment,
    interval_text,
    score_heading,
    signed_text,
    summarize,
)
from sn_imagenet.reporting.paper import in_paper_order
from sn_imagenet.reporting.render import Document, Grid, Row, interval_columns, rounded
from sn_imagenet.reporting.statistics import Estimate, contrast
from sn_imagenet.reporting.study import RunCollection, Study, studies_of
from sn_imagenet.reporting.table2 import Columns, GridOf, accuracy_document
from sn_imagenet.runs import Run, Setting

BN_AND_SN = ("bn", "sn")
_NORM_ARGS = "norm.args."
# Keys that do not affect BN, which has no lambdas.
_SN_KEYS = (_NORM_ARGS, "protocol.lambda_weight_decay")
# Depends on the setting (no BN at one sample), so it is not a change of the protocol.
_OMEGA_KEY = "norm.args.omega"


@dataclass(frozen=True)
class Variant:
    """BN and SN under a change of the protocol, or in a network, at one setting."""

    setting: Setting
    label: str
    bn: Summary
    sn: Summary
    base: tuple[Summary, Summary] | None = None  # BN and SN to compare with; None for the base

    @property
    def difference(self) -> Estimate | None:
        """SN - BN over seeds (Welch)."""
        return contrast([self.sn.values, self.bn.values], [1.0, -1.0])

    @property
    def move(self) -> Estimate | None:
        """(SN - BN) of the variant minus that of the base (Welch over the four cells)."""
        if self.base is None:
            return None
        terms = [(self.sn, 1.0), (self.bn, -1.0), (self.base[1], -1.0), (self.base[0], 1.0)]
        if self.sn is self.base[1]:  # the same runs cancel
            terms = [terms[3], terms[1]]
        elif self.bn is self.base[0]:
            terms = [terms[0], terms[2]]
        return contrast([cell.values for cell, _ in terms], [sign for _, sign in terms])


def variants_of(study: Study) -> list[Variant]:
    """The variants of a study by setting in the paper's order, the base first. A change that only
    affects SN is compared with BN of the base, and BN evaluated by the batch average with SN of the
    base."""
    runs = [run for run in study.runs if run.cell.norm in BN_AND_SN and run.config]
    changes = dict(zip(runs, _changes(runs), strict=True))
    variants: list[Variant] = []
    for setting in in_paper_order({run.cell.setting for run in runs}):
        groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
        for run in runs:
            if run.cell.setting == setting:
                groups.setdefault(changes[run], []).append(run)
        plain = groups.pop((), [])
        base = _bn_and_sn(plain)
        variants.append(Variant(setting, "as most runs", *base))
        for items, changed in sorted(groups.items()):
            bn, sn = _bn_and_sn(changed)
            if not bn.runs and all(key.startswith(_SN_KEYS) for key, _ in items):
                bn = base[0]
            label = ", ".join(f"{key}={value}" for key, value in items)
            variants.append(Variant(setting, label, bn, sn, base))
        by_batch = summarize([r for r in plain if r.cell.norm == "bn"], "batch_average")
        if by_batch.values:
            variants.append(Variant(setting, "BN by batch average", by_batch, base[1], base))
    return variants


def networks_of(study: Study) -> list[Variant]:
    """Each network of the runs at each setting, ordered by the numbers in their names
    (``resnet14_mini`` before ``resnet50_mini``), compared with the first."""
    runs = [run for run in study.runs if run.cell.norm in BN_AND_SN]
    variants: list[Variant] = []
    for setting in in_paper_order({run.cell.setting for run in runs}):
        base: tuple[Summary, Summary] | None = None
        models: dict[str, list[Run]] = {}
        for run in runs:
            if run.cell.setting == setting:
                models.setdefault(run.cell.model, []).append(run)
        for model in sorted(models, key=lambda m: ([int(n) for n in re.findall(r"\d+", m)], m)):
            cells = _bn_and_sn(models[model])
            variants.append(Variant(setting, model, *cells, base))
            base = base or cells
    return variants


def _bn_and_sn(runs: Sequence[Run]) -> tuple[Summary, Summary]:
    bn, sn = (summarize([run for run in runs if run.cell.norm == norm]) for norm in BN_AND_SN)
    return bn, sn


_INTERVALS = (
    "Mean ± sample standard deviation (number of seeds). Brackets: Welch's 95 % interval over "
    "seeds, for SN-BN and for its difference from the first row of the same setting; none with "
    "fewer than two seeds. Not corrected for the number of rows."
)


def variants_grid(study: Study) -> Grid | None:
    """SN - BN under each change, and how far the change moves it; None if all runs of the study
    have the same protocol."""
    variants = variants_of(study)
    if len({v.label for v in variants}) < 3:  # any study has BN by batch average
        return None
    caption = f"What moves SN-BN on {study.name}: {score_heading(study.score)}, one change of the "
    notes = (
        "As most runs: the protocol that the other rows change as named.",
        _INTERVALS,
        "A change that only affects SN is compared with BN of the first row, BN by batch average "
        "with SN of the first row.",
    )
    return _grid(study, variants, f"{caption}protocol a row.", notes)


def networks_grid(study: Study) -> Grid | None:
    """SN - BN of each network, and its difference from the first network's; None with a single
    network."""
    if len({run.cell.model for run in study.runs}) < 2:
        return None
    caption = f"SN-BN by network on {study.name}: {score_heading(study.score)}."
    return _grid(study, networks_of(study), caption, (_INTERVALS,))


def _grid(study: Study, variants: Sequence[Variant], caption: str, notes: tuple[str, ...]) -> Grid:
    digits = study.digits

    def text(estimate: Estimate | None) -> str:
        if estimate is None:
            return MISSING
        interval = interval_text(estimate.interval, digits, "+")
        return f"{signed_text(estimate.effect, digits)} {interval}".rstrip()

    rows = []
    for i, v in enumerate(variants):
        numbers = (v.bn.text(digits), v.sn.text(digits), text(v.difference), text(v.move))
        rule = i > 0 and v.setting != variants[i - 1].setting
        rows.append(Row(v.label, (str(v.setting), *numbers), rule=rule))
    return Grid(caption, ("setting", "BN", "SN", "SN-BN", "moves it by"), tuple(rows), notes)


def variant_columns(v: Variant) -> dict[str, object]:
    """The columns of the CSV, top-1 in percent."""
    columns: dict[str, object] = {}
    for name, cell in (("bn", v.bn), ("sn", v.sn)):
        columns |= {name: rounded(cell.mean), f"{name}_seeds": len(cell.values)}
    for name, estimate in (("difference", v.difference), ("move", v.move)):
        columns[name] = rounded(estimate.effect) if estimate else None
        columns |= interval_columns(estimate.interval if estimate else None, f"{name}_")
    return columns


def variants_warnings(variants: Sequence[Variant], collection: RunCollection) -> list[str]:
    """One line for each cell that is not averaged; two rows may show the same cell."""
    mixed = {id(cell): (v, cell) for v in reversed(variants) for cell in (v.sn, v.bn)}
    return [
        f"{v.label} {v.setting}: not averaged, the runs are not seeds of one experiment: "
        f"{cell.conflict}: {', '.join(collection.folders(cell.runs))}"
        for v, cell in reversed(mixed.values())
        if cell.conflict
    ]


def _changes(runs: Sequence[Run]) -> list[tuple[tuple[str, str], ...]]:
    """Per run, the config keys and values (as JSON) in which it differs from most runs."""
    items = [
        {
            key: value
            for key, value in experiment(run).items()
            if key != _OMEGA_KEY and (key.startswith(_NORM_ARGS) or not key.startswith(CELL_KEYS))
        }
        for run in runs
    ]
    keys = sorted(set().union(*items))
    most = {k: Counter(item.get(k, "null") for item in items).most_common(1)[0][0] for k in keys}
    values = ({key: item.get(key, "null") for key in keys} for item in items)
    return [tuple((k, v) for k, v in item.items() if v != most[k]) for item in values]


def variants(collection: RunCollection) -> Document:
    """SN - BN under each change of the protocol among the runs, and how far each moves it."""

    def labels(study: Study, v: Variant) -> Columns:
        cell = {"data": study.data, "model": study.model, "setting": v.setting.name}
        return {**cell, "change": v.label}

    # Without cells: here runs of one cell differ on purpose.
    studies = [replace(study, cells={}) for study in studies_of(collection)]
    return _sn_minus_bn("Changes of the protocol", studies, variants_of, variants_grid, labels)


def networks(collection: RunCollection) -> Document:
    """SN - BN of each network that was run on a data set, and how far the network moves it."""

    def labels(study: Study, v: Variant) -> Columns:
        return {"data": study.data, "model": v.label, "setting": v.setting.name}

    grouped: dict[tuple[object, ...], Study] = {}
    for study in studies_of(collection):
        key = (study.data, study.row, study.task, study.score)
        runs = [*(grouped[key].runs if key in grouped else ()), *study.runs]
        models = len({run.cell.model for run in runs})
        name = study.model if models == 1 else f"{models} networks"
        grouped[key] = replace(study, model=name, cells={}, runs=runs)
    return _sn_minus_bn("Networks", list(grouped.values()), networks_of, networks_grid, labels)


def _sn_minus_bn(
    title: str,
    studies: Sequence[Study],
    variants_of: Callable[[Study], list[Variant]],
    grid: GridOf,
    labels: Callable[[Study, Variant], Columns],
) -> Document:
    found = {study.title: variants_of(study) for study in studies}
    rows = [[labels(s, v) | variant_columns(v) for v in found[s.title]] for s in studies]
    problems = [w for s in studies for w in variants_warnings(found[s.title], s.collection)]
    return accuracy_document(title, studies, [grid], rows, problems)
