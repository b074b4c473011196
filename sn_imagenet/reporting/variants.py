"""What moves SN - BN: one change of the protocol, or of the network, at a time.

The runs of all variants are below one folder, and their configs tell how they differ. Variants have
no names of their own and are compared with the protocol and the network that most runs share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sn_imagenet.reporting.cells import (
    CELL_KEYS,
    Difference,
    Summary,
    experiment,
    interval_text,
    score_heading,
    signed_text,
    summarize,
)
from sn_imagenet.reporting.paper import in_paper_order
from sn_imagenet.reporting.render import Document, Grid, Row
from sn_imagenet.reporting.study import RunCollection, Study, conflict_warnings, studies_of
from sn_imagenet.reporting.table2 import accuracy_document
from sn_imagenet.runs import Run, Setting

_NORM_KEYS = ("norm.args.", "norm.own_parameters.")
# Keys that do not affect BN, which has no lambdas.
_SN_KEYS = (*_NORM_KEYS, "protocol.lambda_weight_decay")
# Depends on the setting (no BN at one sample), so it is not a change of the protocol.
_OMEGA_KEY = "norm.args.omega"
Changes = tuple[str, ...]  # ``key=value``


@dataclass(frozen=True)
class Variant:
    """BN and SN under a change of the protocol at one setting. ``base``: BN and SN to compare with,
    none for the base itself."""

    setting: Setting
    label: str
    bn: Summary
    sn: Summary
    base: tuple[Summary, ...] = ()

    @property
    def difference(self) -> Difference:
        return Difference(((1.0, self.sn), (-1.0, self.bn)))

    @property
    def move(self) -> Difference:
        """(SN - BN) of the variant minus that of the base. Cells of the same runs cancel."""
        terms = list[tuple[float, Summary]]()
        for sign, ours, base in zip((1.0, -1.0), (self.sn, self.bn), self.base, strict=False):
            terms += [(sign, ours), (-sign, base)] if ours is not base else []
        return Difference(tuple(terms))


def variants_of(study: Study) -> list[Variant]:
    """The variants of a study by setting in the paper's order, the base first. A change that only
    affects SN is compared with BN of the base, and BN evaluated by the batch average with SN of the
    base."""
    changes = _changes([run for run in study.runs if run.cell.norm in ("bn", "sn") and run.config])
    (network, _), *others = Counter(run.cell.model for run in changes).most_common() or [("", 0)]
    variants: list[Variant] = []
    for setting in in_paper_order({run.cell.setting for run in changes}):
        groups: dict[Changes, list[Run]] = {(): []}
        for run, changed in changes.items():
            if run.cell.setting == setting:
                groups.setdefault(changed, []).append(run)
        base: tuple[Summary, ...] = ()
        for changed, runs in sorted(groups.items()):
            sn, bn = (summarize([r for r in runs if r.cell.norm == norm]) for norm in ("sn", "bn"))
            if base and not bn.runs and all(key.startswith(_SN_KEYS) for key in changed):
                bn = base[1]
            label = ", ".join(changed) or "as most runs" + f" ({network})" * bool(others)
            variants.append(Variant(setting, label, bn, sn, base))
            base = base or (sn, bn)
        by_batch = summarize([r for r in groups[()] if r.cell.norm == "bn"], "batch_average")
        if by_batch.values:
            variants.append(Variant(setting, "BN by batch average", by_batch, base[0], base))
    return variants


def _changes(runs: Sequence[Run]) -> dict[Run, Changes]:
    """The config keys and values (as JSON) in which each run differs from most runs."""
    configs = {
        run: {
            key: value
            for key, value in experiment(run).items()
            if key != _OMEGA_KEY and (key.startswith(_NORM_KEYS) or not key.startswith(CELL_KEYS))
        }
        for run in runs
    }
    changes: dict[Run, Changes] = dict.fromkeys(runs, ())
    for key in sorted(set().union(*configs.values())):
        values = {run: config.get(key, "null") for run, config in configs.items()}
        ((most, _),) = Counter(values.values()).most_common(1)
        for run, value in values.items():
            changes[run] += (f"{key}={value}",) if value != most else ()
    return changes


def variants_grid(study: Study) -> Grid | None:
    """SN - BN under each change, and how far the change moves it; None if all runs of the study
    have the same protocol."""
    variants, digits = variants_of(study), study.digits
    if len({v.label for v in variants}) < 3:  # any study has BN by batch average
        return None
    rows: list[Row] = []
    for v in variants:
        numbers: dict[str, Summary | Difference] = {"BN": v.bn, "SN": v.sn}
        numbers |= {"SN-BN": v.difference, "moves it by": v.move}
        texts = [str(v.setting)]
        for number in numbers.values():
            if isinstance(number, Summary):
                texts.append(number.text(digits))
            else:
                interval = interval_text(number.interval, digits, "+")
                texts.append(f"{signed_text(number.mean, digits)} {interval}".rstrip())
        of_row = {**study.columns, "setting": v.setting.name, "change": v.label}
        csv = [{**of_row, "number": name, **number.columns} for name, number in numbers.items()]
        rule = bool(rows) and rows[-1].cells[0] != texts[0]
        rows.append(Row(v.label, texts, rule=rule, csv=csv))
    return Grid(
        f"What moves SN-BN on {study.name}: {score_heading(study.score)}, one change of the "
        "protocol a row.",
        ("setting", *numbers),
        rows,
        (
            "As most runs: the protocol that the other rows change as named.",
            "Mean ± sample standard deviation (number of seeds). Brackets: Welch's 95 % interval "
            "over seeds, for SN-BN and for its difference from the first row of the same setting; "
            "none with fewer than two seeds. Not corrected for the number of rows.",
            "A change that only affects SN is compared with BN of the first row, BN by batch "
            "average with SN of the first row.",
        ),
    )


def variants_warnings(study: Study) -> list[str]:
    """One line for each cell that is not averaged, in the first row that shows it."""
    cells = [(v, cell) for v in variants_of(study) for cell in (v.sn, v.bn)]
    named = [(f"{v.label} {v.setting}", cell) for v, cell in cells if cell not in v.base]
    return conflict_warnings(study, "averaged", named)


def variants(collection: RunCollection) -> Document:
    """SN - BN under each change of the protocol, or of the network, among the runs on a data set,
    and how far each moves it."""
    grouped: dict[tuple[object, ...], list[Study]] = {}
    for study in studies_of(collection):
        key = (study.data, study.row, study.task, study.score)
        grouped.setdefault(key, []).append(study)
    studies = [
        replace(
            first,
            model=f"{1 + len(others)} networks" if others else first.model,
            runs=[run for study in (first, *others) for run in study.runs],
        )
        for first, *others in grouped.values()
    ]
    grids = [variants_grid]
    return accuracy_document("Changes of the protocol", studies, grids, variants_warnings)
