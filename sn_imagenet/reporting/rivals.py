"""The rivals of SN for few samples per GPU (docs/rivals.md), and what is published about them."""

from __future__ import annotations

from itertools import product

from sn_imagenet.reporting.cells import method_label, minus
from sn_imagenet.reporting.claims import LARGE, SINGLE, SMALL, Judge, not_below
from sn_imagenet.reporting.study import Study
from sn_imagenet.reporting.verdict import Claim, judge, paired
from sn_imagenet.runs import Run, Setting
from sn_imagenet.runs.evaluations import EVALNORM

RIVALS = ("ssn", "bin", "frn", "ebn", "mean_bn", "wn", EVALNORM)


def rivals_of(study: Study) -> list[str]:
    """The rivals among the methods of a study, in the order of :data:`RIVALS`."""
    return [method for method in RIVALS if method in study.methods]


def evalnorm_above_bn(setting: Setting) -> Judge:
    """EvalNorm minus the moving average, of the same networks."""

    def gap(run: Run) -> float | None:
        return minus(run.score_value(EVALNORM), run.score_value("moving_average"))

    name = "EvalNorm - moving average"
    return lambda study: judge(
        [paired(name, setting, study.cell("bn", setting).finished, gap, low=0.0)]
    )


# The claims, and the rival that each is about. The sources' thresholds, which are for ImageNet, are
# not claimed here, only the direction.
RIVAL_CLAIMS: dict[Claim, str] = {
    Claim(13, "SSN, by moving average, is at least as good as SN.", "SSN, model zoo",
          not_below(*(("ssn", "sn", s) for s in (LARGE, Setting(8, 8), SMALL)))): "ssn",
    Claim(14, "BIN is at least as good as BN where BN has enough samples.", "BIN, Sec. 4.1",
          not_below(("bin", "bn", LARGE))): "bin",
    Claim(15, "FRN is above BN at (8,32).", "FRN, abstract",
          not_below(("frn", "bn", LARGE))): "frn",
    Claim(16, "Extended BN is above BN with one or two samples per GPU.", "Extended BN, abstract",
          not_below(*(("ebn", "bn", s) for s in (SMALL, SINGLE)))): "ebn",
    Claim(17, "EvalNorm is above the moving average of BN trained with two samples per GPU.",
          "EvalNorm, abstract", evalnorm_above_bn(SMALL)): EVALNORM,
    Claim(18, "WN is below BN with 32 and 8 samples per GPU.", "Gitman and Ginsburg 2017",
          not_below(*(("bn", "wn", s) for s in (LARGE, Setting(8, 8))))): "wn",
    Claim(19, "FRN is above GN with one or two samples per GPU.", "FRN, abstract",
          not_below(*(("frn", "gn", s) for s in (SMALL, SINGLE)))): "frn",
    Claim(20, "EvalNorm is at least as good as the moving average of BN at (8,32).",
          "not published", evalnorm_above_bn(LARGE)): EVALNORM,
    Claim(21, "SSN is at least as good as BN at (8,32).", "SSN, model zoo",
          not_below(("ssn", "bn", LARGE))): "ssn",
    Claim(22, "Extended BN is at least as good as BN at (8,32).", "not published",
          not_below(("ebn", "bn", LARGE))): "ebn",
}  # fmt: skip
_FEW = product(RIVALS, {"two samples": SMALL, "one sample": SINGLE}.items())
RIVAL_CLAIMS |= {
    Claim(number, f"{method_label(rival)} is at least as good as SN with {few} per GPU.",
          "not published", not_below((rival, "sn", setting))): rival
    for number, (rival, (few, setting)) in enumerate(_FEW, start=23)
}  # fmt: skip
