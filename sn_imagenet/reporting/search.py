"""The claims on architecture search (Sec. 4.4, Fig. 6(b)), and what a sceptic asks first."""

from __future__ import annotations

from functools import partial

from sn_imagenet.reporting.cells import minus
from sn_imagenet.reporting.claims import not_below_where_both_ran
from sn_imagenet.reporting.curves import BOTH, mean_weight
from sn_imagenet.reporting.study import FOUND, Study
from sn_imagenet.reporting.verdict import WEIGHT, Claim, Judgment, Term, compare, judge, paired
from sn_imagenet.runs import Run

SEARCH = "architecture_search"
_NOT_IN_PAPER = "not in the paper"


def found_above_random(study: Study) -> Judgment:
    """Top-1 of SN's architectures minus those of random search, above 0: trained from scratch, by
    the runs of ``model=cell`` with the data, the methods and the seeds of the searches."""
    trained = {
        (run.cell.data, run.cell.norm, run.seed): run.score_value()
        for run in study.collection.runs
        if run.cell.model == FOUND and not run.cell.task
    }

    def top1(run: Run) -> float | None:
        return trained.get((run.cell.data, run.cell.norm, run.seed))

    above = partial(compare, study, low=0.0, value=top1, unit="points of top-1")
    return judge([above(Term("sn", s), Term("random", s)) for s in study.settings])


def lstm_prefers_ln(study: Study) -> Judgment:
    """SN's weight of LN minus that of GN, averaged over layers and over μ and σ, above 0."""

    def gap(run: Run) -> float | None:
        return minus(*(mean_weight(run.weights, BOTH, member) for member in ("ln", "gn")))

    cells = {setting: study.cell("sn", setting).finished for setting in study.settings}
    name = "SN's weight, LN - GN"
    return judge([paired(name, s, runs, gap, low=0.0, unit=WEIGHT) for s, runs in cells.items()])


SEARCH_CLAIMS = (
    Claim(1, "SN is better than LN and than GN.", "Fig. 6(b)",
          not_below_where_both_ran(("sn", "ln"), ("sn", "gn"), all_parts=True)),
    Claim(2, "SN's weight of LN is above its weight of GN.", "Fig. 1(c)", lstm_prefers_ln),
    Claim(3, "LN, GN and SN are better than no normalization.", _NOT_IN_PAPER,
          not_below_where_both_ran(*((m, "none") for m in ("ln", "gn", "sn")), all_parts=True)),
    Claim(4, "SN is better than random search.", _NOT_IN_PAPER,
          not_below_where_both_ran(("sn", "random"))),
    Claim(5, "From scratch, SN's cells are above random ones.", _NOT_IN_PAPER, found_above_random),
)  # fmt: skip
