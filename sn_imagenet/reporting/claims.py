"""The claims of the paper on classification and detection that a reproduction can test, and those
about one's own methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import combinations, pairwise, product
from statistics import fmean

from sn_imagenet.reporting.cells import Summary, method_label, minus, run_differences
from sn_imagenet.reporting.curves import BOTH, KIND_SYMBOLS, mean_weight, try_epochs
from sn_imagenet.reporting.paper import PAPER_SETTINGS
from sn_imagenet.reporting.study import Study
from sn_imagenet.reporting.verdict import (
    LEAST_SEEDS,
    OTHER_DATA,
    WEIGHT,
    Claim,
    Comparison,
    Judgment,
    Term,
    Value,
    Verdict,
    combined,
    compare,
    count_verdict,
    difference,
    judge,
    paired,
    why_not_comparable,
)
from sn_imagenet.runs import DIVERGED, FINISHED, Run, Setting

LARGE, SMALL, SINGLE = Setting(8, 32), Setting(8, 2), Setting(8, 1)
Judge = Callable[[Study], Judgment]


def not_below(*cells: tuple[str, str, Setting], all_parts: bool = False) -> Judge:
    """The first method minus the second at a setting, not below 0."""
    return lambda study: judge(
        [difference(study, *cell, low=0.0) for cell in cells], all_parts=all_parts
    )


def within(pairs: Iterable[tuple[Term, Term]], low: float, high: float) -> Judge:
    """One cell minus another, within thresholds that are for ImageNet."""
    fixed = list(pairs)
    return lambda study: judge(
        [compare(study, *pair, low, high, threshold_of_imagenet=True) for pair in fixed]
    )


def not_below_where_both_ran(
    *pairs: tuple[str, str], all_parts: bool = False, label: Callable[[str], str] = method_label
) -> Judge:
    """The first method minus the second, not below 0, at each setting where both were run.
    ``all_parts``: whether the claim needs all pairs."""

    def judged(study: Study) -> Judgment:
        found, missing = [], []
        for pair in pairs:
            name = " - ".join(map(label, pair))
            both = [s for s in study.settings if all(study.cell(m, s).runs for m in pair)]
            for setting in both:
                first, second = (Term(method, setting) for method in pair)
                found.append(compare(study, first, second, low=0.0, name=f"{name} {setting}"))
            if not both:
                missing.append(Comparison(name, why_not="no setting has runs of both methods"))
        return judge(found + missing if all_parts or not found else found, all_parts=all_parts)

    return judged


def sn_above_gn(study: Study) -> Judgment:
    regions = {s: {"high": 0.0} if s in (SMALL, SINGLE) else {"low": 0.0} for s in PAPER_SETTINGS}
    return judge([difference(study, "sn", "gn", s, **regions[s]) for s in PAPER_SETTINGS])


def bn_fails_at_one_sample(study: Study) -> Judgment:
    """Failed seeds: diverged, or below half of the best method's mean. Judged by counting: the
    claim holds if all seeds of BN failed and none of GN and SN. It does not hold if no seed of BN
    failed, or all seeds of GN or of SN."""
    cells = {norm: study.cell(norm, SINGLE) for norm in ("bn", "gn", "sn")}
    best = max((cell.mean for cell in cells.values() if cell.mean is not None), default=0.0)
    problems, verdicts, counts, seeds = [], [], [], {}
    for norm, cell in cells.items():
        ended = [run for run in cell.runs if run.state in (FINISHED, DIVERGED)]
        failed = sum(r.state == DIVERGED or (r.score_value() or 0.0) < best / 2 for r in ended)
        if cell.conflict or len(ended) < LEAST_SEEDS:
            why = cell.conflict or f"{len(ended)} seeds have ended"
            problems.append(f"{method_label(norm)}: {why}")
        verdicts.append(count_verdict(failed if norm == "bn" else len(ended) - failed, len(ended)))
        counts.append(f"{method_label(norm)} {failed} of {len(ended)}")
        seeds[study.cell_name(norm, SINGLE)] = len(ended)
    gaps = [difference(study, norm, "bn", SINGLE, low=0.0) for norm in ("gn", "sn")]
    return Judgment(
        Verdict.NOT_TESTED if problems else combined(verdicts),
        tuple(gaps),
        (Verdict.NOT_TESTED,) * len(gaps),
        runs=tuple(run for cell in cells.values() for run in cell.runs),
        seeds=seeds,
        settings=(SINGLE,),
        note="; ".join(["failed: diverged, or below half of the best mean at (8,1)", *problems]),
        counted=f"seeds that failed: {', '.join(counts)}",
    )


def weights_follow_samples(study: Study) -> Judgment:
    """Slope of the weights of BN (up) and LN (down), averaged over layers, per doubling of the
    samples per GPU, over the settings where Omega contains BN."""
    cells = _sn_with_bn(study)
    x = [math.log2(setting.samples_per_gpu) for setting in cells]
    first = next(iter(cells.values()), Summary())
    why = "; ".join(d for c in cells.values() if (d := run_differences(first.runs, c.runs)))
    if len(set(x)) < 2:
        why = f"two numbers of samples per GPU with {LEAST_SEEDS} seeds of SN are needed"
    if why:
        return judge([Comparison("BN and LN against samples", tuple(cells), why_not=why)])
    spread = math.fsum((one - fmean(x)) ** 2 for one in x)
    slopes = [(one - fmean(x)) / spread for one in x]
    comparisons = []
    for (kind, symbol), (member, low, high) in product(
        KIND_SYMBOLS.items(), (("bn", 0.0, math.inf), ("ln", -math.inf, 0.0))
    ):
        comparisons.append(
            Comparison(
                f"{method_label(member)}'s weight of {symbol} per doubling of samples per GPU",
                tuple(cells),
                low,
                high,
                {
                    f"SN {s}": [mean_weight(r.weights, kind, member) or 0.0 for r in cell.finished]
                    for s, cell in cells.items()
                },
                slopes,
                test="t interval of the slope over the settings' means (Welch, Satterthwaite)",
                unit=WEIGHT,
                runs=tuple(run for cell in cells.values() for run in cell.runs),
            )
        )
    return judge(comparisons, all_parts=True)


def weights_differ(study: Study) -> Judgment:
    def gap(first: tuple[str, ...], second: tuple[str, ...]) -> Value:
        """Of BN's weight, each averaged over layers: (kind, stage, convolution)."""
        return lambda run: minus(
            *(mean_weight(run.weights, kind, "bn", *where) for kind, *where in (first, second))
        )

    differing = {
        "BN's weight of μ, res5 - res2": gap(("mean", "res5"), ("mean", "res2")),
        "BN's weight of μ, after 3x3 - after 1x1": gap(("mean", "", "3x3"), ("mean", "", "1x1")),
        "BN's weight, σ - μ": gap(("variance",), ("mean",)),
    }
    last, of_last = "BN's weight in res5, σ - μ", gap(("variance", "res5"), ("mean", "res5"))
    comparisons: list[Comparison] = []
    for setting, cell in _sn_with_bn(study).items():
        runs = cell.finished
        for name, value in differing.items():
            comparisons.append(paired(name, setting, runs, value, differs=True, unit=WEIGHT))
        comparisons.append(paired(last, setting, runs, of_last, high=0.0, unit=WEIGHT))
    return judge(comparisons or [_no_sn_with_bn(last)])


def averages_agree(study: Study) -> Judgment:
    """SN's top-1 by batch average minus that by moving average at the end; and how much each
    changes from epoch to epoch."""

    def at_the_end(run: Run) -> float | None:
        return minus(run.score_value("batch_average"), run.score_value("moving_average"))

    comparisons: list[Comparison] = []
    end = "SN, batch - moving average at the end"
    change = "SN, change per epoch, moving - batch average"
    for setting, cell in _sn_with_bn(study).items():
        runs, why_not = cell.finished, "" if study.matches_paper else OTHER_DATA
        comparisons += [
            paired(end, setting, runs, at_the_end, -0.1, 0.1, why_not=why_not),
            paired(change, setting, runs, _unsteadiness_gap, low=0.0),
        ]
    none = _no_sn_with_bn("SN, batch - moving average")
    return judge(comparisons or [none], all_parts=True)


def six_parameters_a_layer(study: Study) -> Judgment:
    """Number of importance weights in the runs of SN with Omega = {IN, LN, BN}."""
    runs = [
        run
        for s in study.settings_of("sn")
        for run in study.cell("sn", s).finished
        if run.weights and {"in", "ln", "bn"} == set(run.weights[0].mean)
    ]
    counts = {
        (len(run.weights), sum(len(w.mean) + len(w.variance) for w in run.weights)) for run in runs
    }
    right = {(53, 318)} if study.matches_paper else {(n, 6 * n) for n, _ in counts}
    counted = ", ".join(f"{total} in {layers} layers" for layers, total in sorted(counts))
    return Judgment(
        count_verdict(len(counts & right), len(counts)),
        runs=tuple(runs),
        settings=tuple(dict.fromkeys(run.cell.setting for run in runs)),
        note="the paper: 318 in ResNet-50. The order of computation is measured for Table 1 "
        "(scripts/make_tables.py --only table1), not in these runs",
        counted=f"importance weights: {counted}" if counted else "",
    )


def ln_larger_in_heads(study: Study) -> Judgment:
    """LN's weight, averaged over μ, σ and layers: in a detector's heads minus in the ResNet."""

    def gap(run: Run) -> float | None:
        heads = [layer for layer in run.weights if layer.stage in ("box", "mask")]
        backbone = [layer for layer in run.weights if layer.stage.startswith("res")]
        return minus(*(mean_weight(layers, BOTH, "ln") for layers in (heads, backbone)))

    name = "LN's weight, heads - backbone"
    comparisons = [
        paired(name, setting, runs, gap, low=0.0, unit=WEIGHT)
        for setting in study.settings_of("sn")
        if (runs := study.cell("sn", setting).finished)
    ]
    return judge(comparisons or [Comparison(name, why_not="no finished run of SN")])


def own_claims(study: Study) -> list[Claim]:
    """One's own methods, which are neither the paper's nor built in, against each other method with
    which the table compares them."""
    pairs = [pair for pair in study.compared_methods if pair[0] in study.own_methods]
    return [
        Claim(
            number,
            f"{study.label(own)} is at least as good as {study.label(other)} in every setting of "
            "both.",
            "not in the paper",
            not_below_where_both_ran((own, other), label=study.label),
        )
        for number, (own, other) in enumerate(pairs if study.is_classification else (), start=1)
    ]


def _sn_with_bn(study: Study) -> dict[Setting, Summary]:
    """SN's cells with enough finished seeds, and BN in Omega."""
    return {
        s: study.cell("sn", s)
        for s in study.settings_of("sn")
        if not why_not_comparable(study, Term("sn", s))
        and all(r.weights and "bn" in r.weights[0].mean for r in study.cell("sn", s).finished)
    }


def _no_sn_with_bn(name: str) -> Comparison:
    why = f"no setting with {LEAST_SEEDS} finished seeds of an SN with BN"
    return Comparison(name, why_not=why)


def _unsteadiness_gap(run: Run) -> float | None:
    """Mean change of top-1 between successive calibrated epochs: moving minus batch average."""
    epochs, _ = try_epochs(run)  # the figures report an error; here the seed is left out
    curve = [epoch.validation for epoch in epochs]
    both = [v for v in curve if {"moving_average", "batch_average"} <= v.keys()]
    if len(both) < 3:
        return None
    moving, batch = (
        fmean(abs(b[name] - a[name]) for a, b in pairwise(both))
        for name in ("moving_average", "batch_average")
    )
    return moving - batch


_GN_CELLS = [Term("gn", setting) for setting in PAPER_SETTINGS]
CLAIMS = (
    Claim(1, "SN is at least as good as BN in all nine settings.", "Table 2",
          not_below(*(("sn", "bn", s) for s in PAPER_SETTINGS))),
    Claim(2, "SN is better than GN in seven of nine settings, not in (8,2) and (8,1).", "Table 2",
          sn_above_gn),
    Claim(3, "BN at (8,2) loses 10 points or more against (8,32).", "Table 2",
          within([(Term("bn", LARGE), Term("bn", SMALL))], 10.0, math.inf)),
    Claim(4, "GN stays within 0.5 over all settings.", "Table 2",
          within(combinations(_GN_CELLS, 2), -0.5, 0.5)),
    Claim(5, "At (8,1) BN fails, GN and SN do not.", "Table 2", bn_fails_at_one_sample),
    Claim(6, "It is the statistics, not the gradients: BN at (1,16) is within 0.2 of (8,32).",
          "Sec. 4.1", within([(Term("bn", Setting(1, 16)), Term("bn", LARGE))], -0.2, 0.2)),
    Claim(7, "BN's importance weight falls and LN's rises as samples per GPU fall.", "Fig. 4",
          weights_follow_samples),
    Claim(8, "Importance weights differ by depth, position and μ/σ; in the last stage σ's weight "
          "of BN is below μ's.", "Fig. 3", weights_differ),
    Claim(9, "Batch and moving average end within 0.1; during training the batch average is "
          "steadier.", "Sec. 2.1, Fig. 8", averages_agree),
    Claim(10, "IN < LN < SN at (8,32).", "Sec. 4.1",
          not_below(("ln", "in", LARGE), ("sn", "ln", LARGE), all_parts=True)),
    Claim(11, "BN < BRN < SN at (8,4).", "Sec. 4.1",
          not_below(("brn", "bn", Setting(8, 4)), ("sn", "brn", Setting(8, 4)), all_parts=True)),
    Claim(12, "SN adds 6 parameters per layer (318 in ResNet-50).", "Table 1",
          six_parameters_a_layer),
)  # fmt: skip
# The claims on detection (Sec. 4.2), and how the runs start that they are about; empty for any.
DETECTION_CLAIMS = {
    Claim(1, "BN trained with few images per GPU is below frozen BN.", "Table 3",
          not_below_where_both_ran(("frozen_bn", "bn"))): "pretrained",
    Claim(2, "GN and SN in backbone and heads are above frozen BN.", "Tables 3, 4, 5",
          not_below_where_both_ran(("gn", "frozen_bn"), ("sn", "frozen_bn"), all_parts=True)):
          "pretrained",
    # In backbone and heads, in the heads, and in the backbone.
    Claim(3, "SN is at least as good as GN.", "Tables 3, 4, 5", not_below_where_both_ran(
          ("sn", "gn"), ("frozen_bn+sn", "frozen_bn+gn"), ("gn+sn", "gn"), ("sn", "gn+sn"))): "",
    Claim(4, "From scratch SN is above GN, and GN above BN.", "Table 3",
          not_below_where_both_ran(("sn", "gn"), ("gn", "bn"), all_parts=True)): "scratch",
    Claim(5, "LN's importance weight is larger in the heads than in the backbone.", "Sec. 4.2",
          ln_larger_in_heads): "",
}  # fmt: skip
