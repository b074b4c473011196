"""The twelve claims of the paper that a reproduction can test, one function each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from statistics import fmean

from sn_imagenet.reporting.cells import Summary, method_label, minus, run_differences
from sn_imagenet.reporting.curves import KIND_SYMBOLS, mean_weight, try_epochs
from sn_imagenet.reporting.paper import PAPER_SETTINGS
from sn_imagenet.reporting.statistics import contrast
from sn_imagenet.reporting.study import (
    OTHER_DATA,
    ContrastTerm,
    Study,
    compare,
    difference,
    paired,
    why_not_comparable,
)
from sn_imagenet.reporting.verdict import LEAST_SEEDS, Claim, Comparison, Judgment, Verdict, judge
from sn_imagenet.runs import DIVERGED, FINISHED, Run, Setting

LARGE, SMALL, SINGLE = Setting(8, 32), Setting(8, 2), Setting(8, 1)
_WEIGHT = "importance weight"


def sn_not_below_bn(study: Study) -> Judgment:
    """SN - BN at least 0 in each of the nine settings."""
    return judge([difference(study, "sn", "bn", s, low=0.0) for s in PAPER_SETTINGS])


def sn_above_gn(study: Study) -> Judgment:
    """SN - GN above 0 in seven settings, and not above 0 at (8,2) and (8,1)."""
    regions = {s: {"high": 0.0} if s in (SMALL, SINGLE) else {"low": 0.0} for s in PAPER_SETTINGS}
    return judge([difference(study, "sn", "gn", s, **regions[s]) for s in PAPER_SETTINGS])


def bn_loses_ten(study: Study) -> Judgment:
    """BN at (8,32) minus BN at (8,2), at least 10 points on ImageNet."""
    terms = [ContrastTerm("bn", LARGE), ContrastTerm("bn", SMALL, -1.0)]
    name = f"BN {LARGE} - BN {SMALL}"
    return judge([compare(study, name, terms, low=10.0, threshold_of_imagenet=True)])


def gn_stays(study: Study) -> Judgment:
    """GN at each pair of settings, within 0.5 on ImageNet."""
    pairs = itertools.combinations(PAPER_SETTINGS, 2)
    return judge(
        [
            compare(
                study,
                f"GN {a} - GN {b}",
                [ContrastTerm("gn", a), ContrastTerm("gn", b, -1.0)],
                low=-0.5,
                high=0.5,
                threshold_of_imagenet=True,
            )
            for a, b in pairs
        ]
    )


def bn_fails_at_one_sample(study: Study) -> Judgment:
    """Failed seeds at (8,1): diverged, or below half of the best method's mean there. Judged by
    counting: the claim holds if all seeds of BN failed and none of GN and SN. It does not hold if
    no seed of BN failed, or all seeds of GN or of SN."""
    cells = {norm: study.cell(norm, SINGLE) for norm in ("bn", "gn", "sn")}
    runs = tuple(run for cell in cells.values() for run in cell.runs)
    best = max((cell.mean for cell in cells.values() if cell.mean is not None), default=None)
    ended = {
        norm: [r for r in cell.runs if r.state in (FINISHED, DIVERGED)]
        for norm, cell in cells.items()
    }
    problems = [
        f"{method_label(norm)}: {cell.conflict or f'{len(ended[norm])} seeds have ended'}"
        for norm, cell in cells.items()
        if cell.conflict or len(ended[norm]) < LEAST_SEEDS
    ]
    failed = {
        norm: sum(
            r.state == DIVERGED or (r.score_value() or 0.0) < (best or 0.0) / 2 for r in ended[norm]
        )
        for norm in cells
    }
    counted = ", ".join(
        f"{method_label(norm)} {count} of {len(ended[norm])}" for norm, count in failed.items()
    )
    gaps = [difference(study, norm, "bn", SINGLE, low=0.0) for norm in ("gn", "sn")]
    all_failed = {norm for norm in cells if failed[norm] == len(ended[norm])}
    if problems:
        verdict = Verdict.NOT_TESTED
    elif not failed["bn"] or all_failed & {"gn", "sn"}:
        verdict = Verdict.DOES_NOT
    elif "bn" in all_failed and not failed["gn"] + failed["sn"]:
        verdict = Verdict.HOLDS
    else:
        verdict = Verdict.UNDECIDED
    return Judgment(
        verdict,
        tuple(gaps),
        (Verdict.NOT_TESTED,) * len(gaps),
        note="; ".join(["failed: diverged, or below half of the best mean at (8,1)", *problems]),
        counted=f"seeds that failed: {counted}",
        runs=runs,
        seeds={f"{method_label(norm)} {SINGLE}": len(ended[norm]) for norm in cells},
        settings=(SINGLE,),
    )


def statistics_not_gradients(study: Study) -> Judgment:
    """BN at (1,16) minus BN at (8,32), within 0.2 on ImageNet."""
    alone = Setting(1, 16)
    terms = [ContrastTerm("bn", alone), ContrastTerm("bn", LARGE, -1.0)]
    name = f"BN {alone} - BN {LARGE}"
    return judge([compare(study, name, terms, -0.2, 0.2, threshold_of_imagenet=True)])


def weights_follow_samples(study: Study) -> Judgment:
    """Slope of the weights of BN (up) and LN (down), averaged over layers, per doubling of the
    samples per GPU, over the settings where Omega contains BN."""
    cells = {
        s: study.cell("sn", s) for s in study.settings_of("sn") if _has_comparable_sn(study, s)
    }
    x = {s: math.log2(s.samples_per_gpu) for s in cells}
    first = next(iter(cells.values()), Summary((), ()))
    why = "; ".join(d for c in cells.values() if (d := run_differences(first.runs, c.runs)))
    if len(set(x.values())) < 2:
        why = f"two numbers of samples per GPU with {LEAST_SEEDS} seeds of SN are needed"
    if why:
        return judge([Comparison("BN and LN against samples", tuple(cells), why_not=why)])
    center = fmean(x.values())
    spread = sum((value - center) ** 2 for value in x.values())
    slopes = [(x[s] - center) / spread for s in cells]
    comparisons = []
    for (kind, symbol), (member, low, high) in itertools.product(
        KIND_SYMBOLS.items(), (("bn", 0.0, math.inf), ("ln", -math.inf, 0.0))
    ):
        groups = [
            [mean_weight(run.weights, kind, member) or 0.0 for run in _finished(c)]
            for c in cells.values()
        ]
        effect = sum(c * fmean(group) for c, group in zip(slopes, groups, strict=True))
        comparisons.append(
            Comparison(
                f"{method_label(member)}'s weight of {symbol} per doubling of samples per GPU",
                tuple(cells),
                low,
                high,
                effect=effect,
                estimate=contrast(groups, slopes),
                test="t interval of the slope over the settings' means (Welch, Satterthwaite)",
                unit=_WEIGHT,
                seeds={f"SN {s}": len(g) for s, g in zip(cells, groups, strict=True)},
                runs=tuple(run for cell in cells.values() for run in cell.runs),
            )
        )
    return judge(comparisons, all_parts=True)


def weights_differ(study: Study) -> Judgment:
    """BN's weight differs between depths, layer positions and μ/σ, and σ's is below μ's in res5."""
    comparisons: list[Comparison] = []

    def gap(first: tuple[str, ...], second: tuple[str, ...]) -> Callable[[Run], float | None]:
        """Of BN's weight, each averaged over layers: (kind, stage, convolution)."""

        def of_run(run: Run) -> float | None:
            return minus(*(mean_weight(run.weights, k, "bn", *w) for k, *w in (first, second)))

        return of_run

    for setting in study.settings_of("sn"):
        if not _has_comparable_sn(study, setting):
            continue
        runs = _finished(study.cell("sn", setting))
        last = gap(("variance", "res5"), ("mean", "res5"))
        comparisons += [
            paired(f"{what} {setting}", setting, runs, value, differs=True, unit=_WEIGHT)
            for what, value in {
                "BN's weight of μ, res5 - res2": gap(("mean", "res5"), ("mean", "res2")),
                "BN's weight of μ, after 3x3 - after 1x1": gap(
                    ("mean", "", "3x3"), ("mean", "", "1x1")
                ),
                "BN's weight, σ - μ": gap(("variance",), ("mean",)),
            }.items()
        ]
        comparisons.append(
            paired(
                f"BN's weight in res5, σ - μ {setting}", setting, runs, last, high=0.0, unit=_WEIGHT
            )
        )
    if not comparisons:
        why = f"no setting with {LEAST_SEEDS} finished seeds of an SN with BN"
        comparisons = [Comparison("BN's weight in res5, σ - μ", (), why_not=why)]
    return judge(comparisons)


def averages_agree(study: Study) -> Judgment:
    """SN's top-1 by batch average minus that by moving average: within 0.1 at the end on ImageNet;
    during training the batch average changes less from epoch to epoch."""
    comparisons: list[Comparison] = []
    for setting in study.settings_of("sn"):
        if not _has_comparable_sn(study, setting):
            continue
        runs = _finished(study.cell("sn", setting))
        why_not = "" if study.matches_paper else OTHER_DATA
        end = f"SN, batch - moving average at the end {setting}"
        change = f"SN, change per epoch, moving - batch average {setting}"
        comparisons += [
            paired(end, setting, runs, _end_gap, -0.1, 0.1, why_not=why_not),
            paired(change, setting, runs, _unsteadiness_gap, low=0.0),
        ]
    if not comparisons:
        why = f"no setting with {LEAST_SEEDS} finished seeds of an SN with BN"
        comparisons = [Comparison("SN, batch - moving average", (), why_not=why)]
    return judge(comparisons, all_parts=True)


def in_below_ln_below_sn(study: Study) -> Judgment:
    """LN - IN and SN - LN above 0 at (8,32)."""
    pairs = (("ln", "in"), ("sn", "ln"))
    return judge([difference(study, *p, LARGE, low=0.0) for p in pairs], all_parts=True)


def bn_below_brn_below_sn(study: Study) -> Judgment:
    """BRN - BN and SN - BRN above 0 at (8,4)."""
    pairs = (("brn", "bn"), ("sn", "brn"))
    return judge([difference(study, *p, Setting(8, 4), low=0.0) for p in pairs], all_parts=True)


def six_parameters_a_layer(study: Study) -> Judgment:
    """Number of importance weights in the runs of SN with Omega = {IN, LN, BN}."""
    runs = [
        run
        for s in study.settings_of("sn")
        for run in _finished(study.cell("sn", s))
        if run.weights and {"in", "ln", "bn"} == set(run.weights[0].mean)
    ]
    counts = {
        (len(run.weights), sum(len(w.mean) + len(w.variance) for w in run.weights)) for run in runs
    }
    verdict = Verdict.NOT_TESTED
    if counts:
        right = all(total == 6 * layers for layers, total in counts)
        if study.matches_paper:
            right = right and counts == {(53, 318)}
        verdict = Verdict.HOLDS if right else Verdict.DOES_NOT
    counted = ", ".join(f"{total} in {layers} layers" for layers, total in sorted(counts))
    return Judgment(
        verdict,
        (),
        (),
        note="the paper: 318 in ResNet-50. The order of computation is measured for Table 1 "
        "(scripts/make_tables.py --only table1), not in these runs",
        counted=f"importance weights: {counted}" if counted else "",
        runs=tuple(runs),
        settings=tuple(dict.fromkeys(run.cell.setting for run in runs)),
    )


def _finished(cell: Summary) -> list[Run]:
    return [run for run in cell.runs if run.state == FINISHED]


def _has_comparable_sn(study: Study, setting: Setting) -> bool:
    """Whether SN's cell has enough finished seeds, with BN in Omega."""
    if why_not_comparable(study, ContrastTerm("sn", setting)):
        return False
    runs = _finished(study.cell("sn", setting))
    return all(run.weights and "bn" in run.weights[0].mean for run in runs)


def _end_gap(run: Run) -> float | None:
    return minus(run.score_value("batch_average"), run.score_value("moving_average"))


def _unsteadiness_gap(run: Run) -> float | None:
    """Mean change of top-1 between successive calibrated epochs: moving minus batch average."""
    epochs, _ = try_epochs(run)  # the figures report an error; here the seed is left out
    curve = [epoch.validation for epoch in epochs]
    both = [v for v in curve if {"moving_average", "batch_average"} <= v.keys()]
    if len(both) < 3:
        return None
    moving, batch = (
        fmean(abs(b[name] - a[name]) for a, b in itertools.pairwise(both))
        for name in ("moving_average", "batch_average")
    )
    return moving - batch


CLAIMS = (
    Claim(1, "SN is at least as good as BN in all nine settings.", "Table 2", sn_not_below_bn),
    Claim(
        2,
        "SN is better than GN in seven of nine settings, not in (8,2) and (8,1).",
        "Table 2",
        sn_above_gn,
    ),
    Claim(3, "BN at (8,2) loses 10 points or more against (8,32).", "Table 2", bn_loses_ten),
    Claim(4, "GN stays within 0.5 over all settings.", "Table 2", gn_stays),
    Claim(5, "At (8,1) BN fails, GN and SN do not.", "Table 2", bn_fails_at_one_sample),
    Claim(
        6,
        "It is the statistics, not the gradients: BN at (1,16) is within 0.2 of (8,32).",
        "Sec. 4.1",
        statistics_not_gradients,
    ),
    Claim(
        7,
        "BN's importance weight falls and LN's rises as samples per GPU fall.",
        "Fig. 4",
        weights_follow_samples,
    ),
    Claim(
        8,
        "Importance weights differ by depth, position and μ/σ; in the last stage σ's weight of BN "
        "is below μ's.",
        "Fig. 3",
        weights_differ,
    ),
    Claim(
        9,
        "Batch and moving average end within 0.1; during training the batch average is steadier.",
        "Sec. 2.1, Fig. 8",
        averages_agree,
    ),
    Claim(10, "IN < LN < SN at (8,32).", "Sec. 4.1", in_below_ln_below_sn),
    Claim(11, "BN < BRN < SN at (8,4).", "Sec. 4.1", bn_below_brn_below_sn),
    Claim(
        12, "SN adds 6 parameters per layer (318 in ResNet-50).", "Table 1", six_parameters_a_layer
    ),
)
