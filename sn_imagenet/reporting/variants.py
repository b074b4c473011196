"""What moves SN - BN: one change of the protocol at a time, or another network.

The runs of all variants are below one folder, and their configs tell how they differ. Variants have
no names of their own and are compared with the protocol that most runs share. Networks are compared
with the first network.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sn_imagenet.reporting.accuracy import signed_text
from sn_imagenet.reporting.cells import (
    CELL_KEYS,
    MISSING,
    Summary,
    experiment,
    minus,
    score_heading,
    summarize,
)
from sn_imagenet.reporting.paper import in_paper_order
from sn_imagenet.reporting.render import Grid, Row, round_half_up, rounded
from sn_imagenet.reporting.statistics import Estimate, contrast
from sn_imagenet.reporting.study import RunCollection, Study
from sn_imagenet.runs import Run, Setting

BN_AND_SN = ("bn", "sn")
_NORM_ARGS = "norm.args."
# Keys that do not affect BN, which has no lambdas.
_SN_KEYS = (_NORM_ARGS, "protocol.lambda_weight_decay")
# Depends on the setting (no BN at one sample), so it is not a change of the protocol.
_OMEGA_KEY = "norm.args.omega"
BATCH_AVERAGE = "batch_average"

Changes = Mapping[str, str]  # config key -> value as JSON, where a run differs from most runs


@dataclass(frozen=True)
class Variant:
    """BN and SN under a change of the protocol, or in a network, at one setting."""

    setting: Setting
    label: str
    bn: Summary
    sn: Summary
    base: tuple[Summary, Summary] | None  # BN and SN to compare with; None for the base itself

    @property
    def difference(self) -> Estimate | None:
        """SN - BN over seeds (Welch)."""
        return _contrast([self.sn, self.bn], [1.0, -1.0])

    @property
    def move(self) -> Estimate | None:
        """(SN - BN) of the variant minus that of the base (Welch over the four cells)."""
        if self.base is None:
            return None
        if self.sn is self.base[1]:  # the same runs cancel
            return _contrast([self.base[0], self.bn], [1.0, -1.0])
        if self.bn is self.base[0]:
            return _contrast([self.sn, self.base[1]], [1.0, -1.0])
        return _contrast([self.sn, self.bn, *self.base[::-1]], [1.0, -1.0, -1.0, 1.0])


def variants_of(study: Study) -> list[Variant]:
    """The variants of a study by setting in the paper's order, the base first. A change that only
    affects SN is compared with BN of the base, and BN evaluated by the batch average with SN of the
    base."""
    runs = [run for run in study.runs if run.cell.norm in BN_AND_SN and run.config]
    changes = _changes(runs)
    variants: list[Variant] = []
    for setting in in_paper_order({run.cell.setting for run in runs}):
        groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
        for run, changed in zip(runs, changes, strict=True):
            if run.cell.setting == setting:
                groups.setdefault(tuple(sorted(changed.items())), []).append(run)
        plain = groups.pop((), [])
        base = _summarize_method(plain, "bn"), _summarize_method(plain, "sn")
        variants.append(Variant(setting, "as most runs", *base, None))
        for items, variant_runs in sorted(groups.items()):
            bn, sn = (_summarize_method(variant_runs, norm) for norm in BN_AND_SN)
            sn_only = all(key.startswith(_SN_KEYS) for key, _ in items)
            label = ", ".join(f"{key}={value}" for key, value in items)
            variants.append(
                Variant(setting, label, bn if bn.runs or not sn_only else base[0], sn, base)
            )
        by_batch = summarize([r for r in plain if r.cell.norm == "bn"], BATCH_AVERAGE)
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
        at_setting = [run for run in runs if run.cell.setting == setting]
        for model in sorted({run.cell.model for run in at_setting}, key=_by_number):
            of_model = [run for run in at_setting if run.cell.model == model]
            bn, sn = (_summarize_method(of_model, norm) for norm in BN_AND_SN)
            variants.append(Variant(setting, model, bn, sn, base))
            base = base or (bn, sn)
    return variants


def variants_grid(study: Study) -> Grid | None:
    """SN - BN under each change, and how far the change moves it; None if all runs of the study
    have the same protocol."""
    variants = variants_of(study)
    if len({v.label for v in variants}) < 3:  # any study has BN by batch average
        return None
    return _grid(
        study,
        variants,
        f"What moves SN-BN on {study.name}: {score_heading(study.score)}, one change of the "
        "protocol a row.",
        (
            "As most runs: the protocol that the other rows change as named.",
            _INTERVALS,
            "A change that only affects SN is compared with BN of the first row, BN by batch "
            "average with SN of the first row.",
        ),
    )


def networks_grid(study: Study) -> Grid | None:
    """SN - BN of each network, and its difference from the first network's; None with a single
    network."""
    if len({run.cell.model for run in study.runs}) < 2:
        return None
    caption = f"SN-BN by network on {study.name}: {score_heading(study.score)}."
    return _grid(study, networks_of(study), caption, (_INTERVALS,))


def variants_rows(study: Study) -> list[dict[str, object]]:
    """The rows of the CSV, top-1 in percent."""
    return [_row(study.data, study.model, v, {"change": v.label}) for v in variants_of(study)]


def networks_rows(study: Study) -> list[dict[str, object]]:
    """The rows of the CSV, top-1 in percent."""
    return [_row(study.data, v.label, v, {}) for v in networks_of(study)]


def variants_warnings(variants: Sequence[Variant], collection: RunCollection) -> list[str]:
    """One line for each cell that is not averaged."""
    first: dict[int, tuple[Variant, Summary]] = {}  # two rows may show the same cell
    for v in variants:
        for cell in (v.bn, v.sn):
            if cell.conflict:
                first.setdefault(id(cell), (v, cell))
    return [
        f"{v.label} {v.setting}: not averaged, the runs are not seeds of one experiment: "
        f"{cell.conflict}: {', '.join(collection.folders(cell.runs))}"
        for v, cell in first.values()
    ]


_INTERVALS = (
    "Mean ± sample standard deviation (number of seeds). Brackets: Welch's 95 % interval over "
    "seeds, for SN-BN and for its difference from the first row of the same setting; none with "
    "fewer than two seeds. Not corrected for the number of rows."
)


def _grid(study: Study, variants: Sequence[Variant], caption: str, notes: tuple[str, ...]) -> Grid:
    rows, digits = [], study.digits
    for i, variant in enumerate(variants):
        cells = (
            str(variant.setting),
            variant.bn.text(digits),
            variant.sn.text(digits),
            _difference_text(minus(variant.sn.mean, variant.bn.mean), variant.difference, digits),
            _difference_text(variant.move.effect, variant.move, digits)
            if variant.move
            else MISSING,
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
    """Per run, where its protocol differs from that of most runs."""
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
        if key != _OMEGA_KEY and (key.startswith(_NORM_ARGS) or not key.startswith(CELL_KEYS))
    }


def _by_number(model: str) -> tuple[list[int], str]:
    return [int(digits) for digits in re.findall(r"\d+", model)], model


def _summarize_method(runs: Sequence[Run], norm: str) -> Summary:
    return summarize([run for run in runs if run.cell.norm == norm])


def _contrast(cells: Sequence[Summary], coefficients: Sequence[float]) -> Estimate | None:
    return contrast([cell.values for cell in cells], coefficients)


def _difference_text(effect: float | None, estimate: Estimate | None, digits: int) -> str:
    words = signed_text(effect, digits)
    if estimate and effect is not None:
        low, high = (round_half_up(end, digits) for end in estimate.interval())
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
