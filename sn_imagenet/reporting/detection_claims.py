"""The paper's claims about detection (Sec. 4.2), one function each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
# In backbone and heads, in the heads, and in the backbone.
SN_AND_GN = (("sn", "gn"), ("frozen_bn+sn", "frozen_bn+gn"), ("gn+sn", "gn"), ("sn", "gn+sn"))


def detection_claims(study: Study) -> list[Claim]:
    """The claims about runs that start as those of ``study``; none for other tasks."""
    if study.task != TASK:
        return []
    return [claim for claim, start in CLAIMS.items() if start in ("", study.row)]


def not_below(pairs: Sequence[tuple[str, str]], all_parts: bool, study: Study) -> Judgment:
    """The first method of each pair minus the second, not below 0, at each setting where both were
    run. ``all_parts``: whether the claim needs all pairs."""
    comparisons: list[Comparison] = []
    missing: list[Comparison] = []
    for first, second in pairs:
        name = f"{pair_label(first)} - {pair_label(second)}"
        found = [
            compare(
                study,
                Term(first, setting),
                Term(second, setting),
                low=0.0,
                name=f"{name} {setting}",
                value=lambda run: run.score_value(),
                unit=POINTS,
            )
            for setting in study.settings
            if study.cell(first, setting).runs and study.cell(second, setting).runs
        ]
        comparisons += found
        if not found:
            missing.append(Comparison(name, (), why_not="no setting has runs of both methods"))
    shown = comparisons + missing if all_parts or not comparisons else comparisons
    return judge(shown, all_parts=all_parts)


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
          partial(not_below, [("frozen_bn", "bn")], False)): "pretrained",
    Claim(2, "GN and SN in backbone and heads are above frozen BN.", "Tables 3, 4, 5",
          partial(not_below, [("gn", "frozen_bn"), ("sn", "frozen_bn")], True)): "pretrained",
    Claim(3, "SN is at least as good as GN.", "Tables 3, 4, 5",
          partial(not_below, SN_AND_GN, False)): "",
    Claim(4, "From scratch SN is above GN, and GN above BN.", "Table 3",
          partial(not_below, [("sn", "gn"), ("gn", "bn")], True)): "scratch",
    Claim(5, "LN's importance weight is larger in the heads than in the backbone.", "Sec. 4.2",
          ln_larger_in_heads): "",
}  # fmt: skip
