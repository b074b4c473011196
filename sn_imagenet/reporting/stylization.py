"""The loss curves of stylization, and the paper's two claims about it (Sec. 4.3)."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.curves import KIND_SYMBOLS, Epoch, mean_weight, metrics_lines
from sn_imagenet.reporting.study import Study
from sn_imagenet.reporting.verdict import Claim, Judgment, Term, compare, count_verdict, judge
from sn_imagenet.runs import FINISHED, Run
from sn_imagenet.runs.reading import number, parse_json

STYLIZATION = "stylization"  # the task's name


def loss_curve(run: Run, key: str = "loss") -> list[Epoch]:
    """The training losses of a run by step, each a mean over ``trainer.log_every`` steps, which the
    end of an epoch divides into two rows. Empty for a run without metrics or with damaged ones,
    which :attr:`Study.damaged` reports."""
    points: dict[int, tuple[int, float, int]] = {}  # (last step, sum of losses, steps)
    try:
        every = int(run.config["trainer"]["log_every"])
        rows = [parse_json(line, finite=False) for line in metrics_lines(run)]
        for row in (row for row in rows if row["kind"] == "train"):
            step, steps = int(row["step"]), int(row["steps"])
            _, total, before = points.get(-(-step // every), (0, 0.0, 0))
            points[-(-step // every)] = step, total + steps * number(row[key]), before + steps
    except (UserError, ValueError, KeyError, TypeError):
        return []
    return [Epoch(step, total / steps, {}) for step, total, steps in points.values()]


def mean_loss(run: Run) -> float | None:
    """The area under a finished run's curve of the total loss, divided by its steps."""
    points = [Epoch(0, 0.0, {}), *loss_curve(run)]
    if run.state != FINISHED or len(points) < 2:
        return None
    areas = [(b.number - a.number) * (b.train or 0.0) for a, b in pairwise(points)]
    return math.fsum(areas) / points[-1].number


def sn_is_fastest(study: Study) -> Judgment:
    """Area under SN's curve of the total loss minus that of IN and of BN, below 0."""
    pairs = [(Term("sn", s), Term(other, s)) for s in study.settings for other in ("in", "bn")]
    area = partial(compare, study, high=0.0, value=mean_loss, unit="mean loss")
    return judge([area(*pair) for pair in pairs], all_parts=True)


def sn_selects_in(study: Study) -> Judgment:
    """IN's importance weight, averaged over layers, above 1/3, its initial value. Counted over
    seeds and μ, σ: holds if all are above, does not hold if none is."""
    runs = [
        r for r in study.runs if r.state == FINISHED and r.weights and len(r.weights[0].mean) > 2
    ]
    weights = {
        s: [mean_weight(r.weights, k, "in") or 0.0 for r in runs] for k, s in KIND_SYMBOLS.items()
    }
    above = [weight > 1 / 3 for group in weights.values() for weight in group]
    verdict = count_verdict(sum(above), len(above))
    ranges = [f"{s} {min(group):.4f} to {max(group):.4f}" for s, group in weights.items() if group]
    counted = f"IN's weight in {len(runs)} seeds: {', '.join(ranges)}" if ranges else ""
    settings = tuple(dict.fromkeys(run.cell.setting for run in runs))
    return Judgment(verdict, (), (), tuple(runs), settings=settings, counted=counted)


STYLIZATION_CLAIMS = (
    Claim(1, "SN's loss falls faster than IN's and BN's (area).", "Fig. 6(a)", sn_is_fastest),
    Claim(2, "SN selects IN: its weight is above 1/3 in every seed.", "Sec. 4.3", sn_selects_in),
)
