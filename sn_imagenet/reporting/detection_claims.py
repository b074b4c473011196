"""The paper's claims about detection (Sec. 4.2), one function each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import fmean

from sn_imagenet.reporting.detection import TASK, pair_label
from sn_imagenet.reporting.study import Study
from sn_imagenet.reporting.verdict import (
    WEIGHT,
    Claim,
    Comparison,
    Judgment,
    Term,
    compare,
    judge,
    paired,
)
from sn_imagenet.runs import FINISHED, Run

POINTS = "points of AP"
HEADS = ("box", "mask")  # stages of layers in the heads


def detection_claims(study: Study) -> list[Claim]:
    """The claims about runs that start as those of ``study``; none for other tasks."""
    if study.task != TASK:
        return []
    return [claim for claim, start in CLAIMS.items() if start in ("", study.row)]


def _ordered(study: Study, pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    """The first method of each pair minus the second, which should not be negative, at each setting
    where both were run; without any, one comparison that says so."""
    comparisons = [
        compare(
            study,
            Term(first, setting),
            Term(second, setting),
            low=0.0,
            name=f"{pair_label(first)} - {pair_label(second)} {setting}",
            value=lambda run: run.score_value(),
            unit=POINTS,
        )
        for setting, (first, second) in itertools.product(study.settings, pairs)
        if study.cell(first, setting).runs and study.cell(second, setting).runs
    ]
    names = ", ".join(f"{pair_label(first)} - {pair_label(second)}" for first, second in pairs)
    return comparisons or [Comparison(names, (), why_not="no setting has runs of both methods")]


def bn_below_frozen(study: Study) -> Judgment:
    return judge(_ordered(study, [("frozen_bn", "bn")]))


def above_frozen(study: Study) -> Judgment:
    pairs = [("gn", "frozen_bn"), ("sn", "frozen_bn")]
    return judge([c for pair in pairs for c in _ordered(study, [pair])], all_parts=True)


def sn_not_below_gn(study: Study) -> Judgment:
    """Of the backbone, of the heads, and of both."""
    pairs = [("sn", "gn"), ("frozen_bn+sn", "frozen_bn+gn"), ("gn+sn", "gn"), ("sn", "gn+sn")]
    return judge(_ordered(study, pairs))


def order_from_scratch(study: Study) -> Judgment:
    pairs = [("sn", "gn"), ("gn", "bn")]
    return judge([c for pair in pairs for c in _ordered(study, [pair])], all_parts=True)


def ln_larger_in_heads(study: Study) -> Judgment:
    """LN's weight, averaged over μ, σ and layers: in the heads minus in the ResNet."""

    def gap(run: Run) -> float | None:
        parts: dict[bool, list[float]] = {True: [], False: []}
        for layer in run.weights:
            if layer.stage in HEADS or layer.stage.startswith("res"):
                weights = (layer.mean.get("ln"), layer.variance.get("ln"))
                parts[layer.stage in HEADS] += [w for w in weights if w is not None]
        heads, backbone = parts[True], parts[False]
        return fmean(heads) - fmean(backbone) if heads and backbone else None

    name = "LN's weight, heads - backbone"
    comparisons = [
        paired(name, setting, runs, gap, low=0.0, unit=WEIGHT)
        for setting in study.settings_of("sn")
        if (runs := [run for run in study.cell("sn", setting).runs if run.state == FINISHED])
    ]
    return judge(comparisons or [Comparison(name, (), why_not="no finished run of SN")])


# The claims, and how the runs start that they are about; empty for any.
CLAIMS: dict[Claim, str] = {
    Claim(1, "BN trained with few images per GPU is below frozen BN.", "Table 3",
          bn_below_frozen): "pretrained",
    Claim(2, "GN and SN in backbone and heads are above frozen BN.", "Tables 3, 4, 5",
          above_frozen): "pretrained",
    Claim(3, "SN is at least as good as GN.", "Tables 3, 4, 5", sn_not_below_gn): "",
    Claim(4, "From scratch SN is above GN, and GN above BN.", "Table 3",
          order_from_scratch): "scratch",
    Claim(5, "LN's importance weight is larger in the heads than in the backbone.", "Sec. 4.2",
          ln_larger_in_heads): "",
}  # fmt: skip
