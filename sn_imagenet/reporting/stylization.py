"""The loss curves of stylization, and the paper's two claims about them (Sec. 4.3)."""

from __future__ import annotations

from sn_imagenet.reporting.comparison import Term, compare
from sn_imagenet.reporting.curves import KIND_SYMBOLS, Epoch, mean_weight
from sn_imagenet.reporting.study import Study
from sn_imagenet.reporting.verdict import Claim, Judgment, Verdict, judge
from sn_imagenet.runs import FINISHED, Run, Setting
from sn_imagenet.runs.reading import number, open_to_read, parse_json

EQUAL_SHARE = 1 / 3  # of the three members of Omega, as initialized


def loss_curve(run: Run, key: str = "loss") -> list[Epoch]:
    """The training losses of a run: the mean over the steps since the row before, by step. Empty
    for a run without metrics or with damaged ones, which :attr:`Study.damaged` reports."""
    try:
        with open_to_read(run.path / "metrics.jsonl") as file:
            rows = [parse_json(line, finite=False) for line in file.read().split(b"\n")[:-1]]
        training = [row for row in rows if row["kind"] == "train"]
        return [Epoch(int(row["step"]), number(row[key]), {}) for row in training]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def mean_loss(run: Run) -> float | None:
    """The area under a finished run's curve of the total loss, divided by its steps."""
    curve = loss_curve(run) if run.state == FINISHED else []
    starts = [0, *(point.number for point in curve)]
    pairs = zip(curve, starts, strict=False)
    areas = [(p.number - start) * loss for p, start in pairs if (loss := p.train) is not None]
    return sum(areas) / starts[-1] if curve else None


def sn_is_fastest(study: Study) -> Judgment:
    """The area under SN's curve of the total loss minus IN's and BN's, below 0."""
    settings = study.settings_of("sn") or [Setting(1, 4)]
    comparisons = [
        compare(study, Term("sn", s), Term(o, s), high=0.0, value=mean_loss, unit="mean loss")
        for s in settings
        for o in ("in", "bn")
    ]
    return judge(comparisons, all_parts=True)


def sn_chooses_in(study: Study) -> Judgment:
    """IN's importance weight, averaged over the layers, above 1/3 for μ and σ. Judged by counting
    seeds: it holds if all are above, and does not hold if none is."""
    runs = [run for run in study.runs if run.cell.norm == "sn" and run.state == FINISHED]
    runs = [run for run in runs if run.weights and len(run.weights[0].mean) == 3]
    counts = []
    for kind, symbol in KIND_SYMBOLS.items():
        weights = [mean_weight(run.weights, kind, "in") or 0.0 for run in runs]
        counts.append((sum(w > EQUAL_SHARE for w in weights), symbol, weights))
    above = [count for count, _, _ in counts]
    if not runs:
        verdict = Verdict.NOT_TESTED
    elif min(above) == len(runs):
        verdict = Verdict.HOLDS
    else:
        verdict = Verdict.UNDECIDED if max(above) else Verdict.DOES_NOT
    counted = "; ".join(
        f"{symbol} {min(weights):.4f} to {max(weights):.4f}, {count} of {len(weights)} above 1/3"
        for count, symbol, weights in counts
        if weights
    )
    return Judgment(
        verdict,
        (),
        (),
        tuple(runs),
        settings=tuple(dict.fromkeys(run.cell.setting for run in runs)),
        counted=f"IN's weight by seed: {counted}" if counted else "",
    )


CLAIMS = (
    Claim(
        1,
        "SN's loss falls faster than IN's and BN's: the area under its curve is smaller.",
        "Fig. 6(a)",
        sn_is_fastest,
    ),
    Claim(2, "SN selects IN: its weight is above 1/3 in every seed.", "Sec. 4.3", sn_chooses_in),
)
