"""The rivals of SN for few samples per GPU (docs/rivals.md), and what is published about them."""

from __future__ import annotations

from sn_imagenet.reporting.cells import minus
from sn_imagenet.reporting.claims import LARGE, SINGLE, SMALL, not_below
from sn_imagenet.reporting.study import Study
from sn_imagenet.reporting.verdict import Claim, Judgment, judge, paired
from sn_imagenet.runs import Run, Setting
from sn_imagenet.runs.evaluations import EVALNORM

RIVALS = ("ssn", "bin", "frn", "ebn", "mean_bn", "wn", EVALNORM)


def rivals_of(study: Study) -> list[str]:
    """The rivals among the methods of a study, in the order of :data:`RIVALS`."""
    return [method for method in RIVALS if method in study.methods]


def evalnorm_above_bn(study: Study) -> Judgment:
    """EvalNorm minus the moving average, of the same networks."""

    def gap(run: Run) -> float | None:
        return minus(run.score_value(EVALNORM), run.score_value("moving_average"))

    runs = study.cell("bn", SMALL).finished
    return judge([paired("EvalNorm - moving average", SMALL, runs, gap, low=0.0)])


# The claims, and the rival that each is about. The sources' thresholds, which are for ImageNet, are
# not claimed here, only the direction.
RIVAL_CLAIMS: dict[Claim, str] = {
    Claim(13, "SSN is at least as good as SN.", "SSN, model zoo",
          not_below(*(("ssn", "sn", s) for s in (LARGE, Setting(8, 8), SMALL)))): "ssn",
    Claim(14, "BIN is at least as good as BN where BN has enough samples.", "BIN, Sec. 4.1",
          not_below(("bin", "bn", LARGE))): "bin",
    Claim(15, "FRN is above BN at (8,32).", "FRN, abstract",
          not_below(("frn", "bn", LARGE))): "frn",
    Claim(16, "Extended BN is above BN with one or two samples per GPU.", "Extended BN, abstract",
          not_below(*(("ebn", "bn", s) for s in (SMALL, SINGLE)))): "ebn",
    Claim(17, "EvalNorm is above the moving average of BN trained with two samples per GPU.",
          "EvalNorm, abstract", evalnorm_above_bn): EVALNORM,
    Claim(18, "WN is below BN at (8,32).", "Gitman and Ginsburg 2017",
          not_below(("bn", "wn", LARGE))): "wn",
    Claim(19, "FRN is above GN with one or two samples per GPU.", "FRN, abstract",
          not_below(*(("frn", "gn", s) for s in (SMALL, SINGLE)))): "frn",
}  # fmt: skip
