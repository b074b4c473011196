"""Tables, figure and claims of SN's rivals, on made-up runs with known answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from run_files import PAPER, config, csv_rows, result, table_rows, write_run

from sn_imagenet.reporting.claims_report import judge_claims
from sn_imagenet.reporting.figures.means import draw_rivals, figure_rivals
from sn_imagenet.reporting.paper import read_paper
from sn_imagenet.reporting.study import RunCollection, studies_of
from sn_imagenet.reporting.tables import write_tables
from sn_imagenet.runs import DIVERGED

TOP1 = {
    ("bn", "8x32"): [60.0, 61.0, 62.0],
    ("bn", "8x2"): [40.0, 42.0, 44.0],
    ("gn", "8x2"): [50.0, 50.5, 51.0],
    ("sn", "8x32"): [58.0, 58.5, 59.0],
    ("sn", "8x2"): [52.0, 52.5, 53.0],
    ("ssn", "8x32"): [64.0, 64.5, 65.0],
    ("ssn", "8x8"): [64.0, 64.5, 65.0],
    ("ssn", "8x2"): [45.0, 45.5, 46.0],
    ("frn", "8x2"): [55.0, 55.5, 56.0],
    ("frn", "8x1"): [55.0, 55.5, 56.0],
}
EVALNORM = [49.0, 50.0, 52.5]  # of BN at (8,2)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> RunCollection:
    root = tmp_path_factory.mktemp("rivals")
    for (norm, batch), values in TOP1.items():
        for seed, top1 in enumerate(values):
            settings = config(norm, batch, seed)
            outcome = result(settings, top1, other_top1=0.0)
            if (norm, batch) == ("bn", "8x2"):
                own = {"statistics": "evalnorm", "top1": EVALNORM[seed], "weight_of_sample": 0.5}
                outcome["evaluations"].append({**outcome["evaluations"][0], **own})
            write_run(root, settings, outcome)
    found, warnings = RunCollection.read(root, read_paper(PAPER))
    assert not warnings
    return found


def test_the_table(collection: RunCollection, tmp_path: Path) -> None:
    settings = ["8x32", "8x8", "8x2", "8x1"]
    written = write_tables(collection.root, tmp_path, PAPER, ["table2"], settings=settings)
    table = table_rows(written.text)
    rows = {label: cells for label, *cells in table}
    assert rows["BN (EvalNorm)"] == ["—", "—", "50.5 ± 1.8 (3)", "—"]
    assert rows["FRN"][2:] == ["**55.5 ± 0.5 (3)**", "55.5 ± 0.5 (3)"]
    assert rows["SSN-SN"][0] == "+6.0" and rows["SSN-SN"][2] == "-7.0"
    assert rows["BN (EvalNorm)-SN"][2] == "-2.0"
    published = table[[label for label, *_ in table].index("SSN") + 2]
    assert published == [
        "– published (ImageNet, ResNet-50)", "77.3", "76.8", "75.9", ""
    ]  # fmt: skip
    labels = [label for label, *_ in table]
    for pair, by in {"SSN-SN": "published", "SN-GN": "paper"}.items():
        below = table[labels.index(pair) :]
        assert next(label for label, *_ in below if "ImageNet" in label).startswith(f"– {by} (")
    assert "BN (EvalNorm) EvalNorm" in written.text
    csv = csv_rows(tmp_path / "table2.csv", "method", "setting")
    assert float(csv["evalnorm", "8x2"]["mean"]) == pytest.approx(fmean(EVALNORM))
    assert float(csv["frn-sn", "8x2"]["mean"]) == pytest.approx(3)


def test_the_table_of_methods_has_their_differences_from_sn(
    collection: RunCollection, tmp_path: Path
) -> None:
    rows = table_rows(write_tables(collection.root, tmp_path, PAPER, ["methods"]).text)
    labels = [label for label, *_ in rows if "-" in label and not label.startswith("–")]
    assert labels == ["BN-SN", "GN-SN", "FRN-SN", "SSN-SN", "BN (EvalNorm)-SN"]


def test_evalnorm_is_shown_among_chosen_methods_only_by_name(collection: RunCollection) -> None:
    for methods in (["bn", "sn"], ["bn", "evalnorm", "sn"]):
        (study,) = studies_of(RunCollection.read(collection.root, methods=methods)[0])
        assert set(study.methods) == set(methods)
    lost = next(r for r in collection.runs if (r.cell.norm, str(r.cell.setting)) == ("bn", "(8,2)"))
    runs = [replace(r, state=DIVERGED, evaluations=[]) if r is lost else r for r in collection.runs]
    (study,) = studies_of(RunCollection(runs, collection.root))
    assert study.cell("evalnorm", lost.cell.setting).text() == "51.3 ± 1.8 (2 of 3; 1 diverged)"


def test_the_claims_about_rivals_that_were_run(collection: RunCollection) -> None:
    paper, rivals = judge_claims(collection)
    assert [one.claim.number for one in paper.judged] == list(range(1, 13))
    verdicts = {one.claim.number: one.judgment for one in rivals.judged}
    assert verdicts.keys() == {13, 15, 17, 19, 20, 21, 23, 24, 27, 28, 35, 36}
    assert verdicts[21].verdict == "holds"  # SSN is above BN at (8,32)
    assert verdicts[24].verdict == "not tested"  # no runs of SSN at (8,1)
    # SSN is above SN at (8,32) and below it at (8,2); (8,8) has no runs of SN.
    assert verdicts[13].verdict == "does not hold"
    assert [v.value for v in verdicts[13].verdicts] == ["holds", "not tested", "does not hold"]
    assert verdicts[19].verdict == "holds"  # FRN is above GN at (8,2)
    # The same networks: the interval is of the differences 9, 8 and 8.5.
    assert verdicts[17].verdict == "holds"
    assert verdicts[17].comparisons[0].effect == pytest.approx(8.5)
    only = RunCollection([r for r in collection.runs if r.cell.norm == "gn"], collection.root)
    assert [group.key for group in judge_claims(only)] == ["claims"]


def test_the_figure_has_a_line_for_each_method(collection: RunCollection) -> None:
    (study,) = studies_of(collection)
    data = figure_rivals(study)
    assert data is not None
    ours, published = data.panels.values()
    lines = {one.label: (list(one.x), list(one.y)) for one in ours}
    assert lines["SSN"] == ([2, 8, 32], [45.5, 64.5, 64.5])
    assert lines["BN (EvalNorm)"] == ([2], [50.5])
    assert [one.label for one in published] == ["BN", "GN", "SN", "SSN", "FRN"]
    assert published[3].x == [2, 4, 8, 16, 32] and published[3].y[0] == 75.85
    figure = draw_rivals(data)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["BN", "GN", "SN", "SSN", "FRN", "BN (EvalNorm)"]
    # EvalNorm is an evaluation: it has no curve of training and no bar in Fig. 1.
    assert "evalnorm" not in study.drawn_methods
