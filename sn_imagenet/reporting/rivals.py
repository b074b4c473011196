"""The rivals of SN for few samples per GPU (docs/rivals.md), and what is published about them."""

from __future__ import annotations

from functools import partial

from sn_imagenet.reporting.study import Study
from sn_imagenet.reporting.verdict import Claim, Comparison, Judgment, difference, judge, paired
from sn_imagenet.runs import FINISHED, Run, Setting
from sn_imagenet.runs.evaluations import EVALNORM

RIVALS = ("ssn", "bin", "frn", "ebn", "mean_bn", "wn", EVALNORM)
LARGE, SMALL, SINGLE = Setting(8, 32), Setting(8, 2), Setting(8, 1)


def rivals_of(study: Study) -> list[str]:
    """The rivals among the methods of a study, in the order of :data:`RIVALS`."""
    return [method for method in RIVALS if method in study.methods]


def rival_claims(study: Study) -> list[Claim]:
    """The claims about the rivals that were run in a study."""
    return [claim for claim, rival in CLAIMS.items() if rival in study.methods]


def _ordered(pairs: list[tuple[str, str, Setting]], study: Study) -> Judgment:
    """The first method of each pair minus the second should not be negative."""
    return judge([difference(study, *pair, low=0.0) for pair in pairs])


def evalnorm_above_bn(study: Study) -> Judgment:
    """EvalNorm minus the moving average, of the same networks."""

    def gap(run: Run) -> float | None:
        ours, theirs = run.score_value(EVALNORM), run.score_value("moving_average")
        return None if ours is None or theirs is None else ours - theirs

    runs = [run for run in study.cell("bn", SMALL).runs if run.state == FINISHED]
    comparisons: list[Comparison] = [paired("EvalNorm - moving average", SMALL, runs, gap, low=0.0)]
    return judge(comparisons)


# The claims, and the rival that each is about. The sources' thresholds, which are for ImageNet, are
# not claimed here, only the direction.
CLAIMS: dict[Claim, str] = {
    Claim(13, "SSN is at least as good as SN.", "SSN, model zoo",
          partial(_ordered, [("ssn", "sn", s) for s in (LARGE, Setting(8, 8), SMALL)])): "ssn",
    Claim(14, "BIN is at least as good as BN where BN has enough samples.", "BIN, Sec. 4.1",
          partial(_ordered, [("bin", "bn", LARGE)])): "bin",
    Claim(15, "FRN is above BN at (8,32), and above GN with one or two samples per GPU.",
          "FRN, abstract", partial(_ordered, [
              ("frn", "bn", LARGE), ("frn", "gn", SMALL), ("frn", "gn", SINGLE)])): "frn",
    Claim(16, "Extended BN is above BN with one or two samples per GPU.", "Extended BN, abstract",
          partial(_ordered, [("ebn", "bn", s) for s in (SMALL, SINGLE)])): "ebn",
    Claim(17, "EvalNorm is above the moving average of BN trained with two samples per GPU.",
          "EvalNorm, abstract", evalnorm_above_bn): EVALNORM,
    Claim(18, "WN is below BN at (8,32).", "Gitman and Ginsburg 2017",
          partial(_ordered, [("bn", "wn", LARGE)])): "wn",
}  # fmt: skip
