"""Figs. 6(a) and 9, the claims and the statements of a study of stylization."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imsave
from matplotlib.text import Text
from run_files import PAPER, config, scored_result, write_run

from sn_imagenet.reporting.claims_report import write_claims
from sn_imagenet.reporting.figures.files import write_figures
from sn_imagenet.reporting.stylization import loss_curve, mean_loss
from sn_imagenet.reporting.tables import write_tables
from sn_imagenet.runs import read_run
from sn_imagenet.runs.scores import Score

SCORE = Score("total_loss", "total loss", "", higher_is_better=False)
LEVELS = {"bn": 3.0, "in": 2.0, "sn": 1.0}


def losses(norm: str, seed: int) -> list[float]:
    """Three rows: after 10, 15, the end of an epoch, and 20 steps."""
    return [LEVELS[norm] * (8 + 0.1 * seed), LEVELS[norm] * 4, LEVELS[norm] * 2]


def write_study(root: Path, weight_of_in: float = 0.4, methods: tuple[str, ...] = ()) -> None:
    for norm in methods or LEVELS:
        for seed in range(3):
            run_config = config(norm, "1x4", seed, "images", "transform_net")
            run_config["task"] = {"name": "stylization", "row": "wave"}
            run_config["trainer"]["log_every"] = 10
            run_config["run_dir"] = f"runs/{norm}/seed{seed}"
            shares = {"in": weight_of_in + seed / 100, "ln": 0.1, "bn": 0.2}
            layer = {"name": "down.0.1", "stage": "", "place": "9x9"}
            layer |= {"mean": shares, "variance": shares}
            numbers = {"total_loss": losses(norm, seed)[-1]}
            weights = [layer] * 15 if norm == "sn" else None
            outcome = scored_result(run_config, SCORE, numbers, weights, row="wave")
            rows = [
                {"kind": "train", "step": step, "steps": steps, "loss": loss, "style": loss / 2}
                for step, steps, loss in zip(
                    (10, 15, 20), (10, 5, 5), losses(norm, seed), strict=True
                )
            ]
            metrics = "".join(
                json.dumps({**row, "feature": row["loss"] / 4}) + "\n" for row in rows
            )
            write_run(root, run_config, outcome, metrics=metrics)


def verdicts(root: Path, out: Path, expected: Path | None = None) -> dict[str, list[str]]:
    files = write_claims(root, out, PAPER, expected)
    content = json.loads(files.paths[0].read_text())
    return {key: [one["verdict"] for one in content[key]] for key in ("claims", "expected")}


def test_the_area_is_the_mean_over_steps(tmp_path: Path) -> None:
    write_study(tmp_path)
    run = read_run(tmp_path / "bn" / "seed1")
    first, second, third = losses("bn", 1)
    curve = [(point.number, point.train) for point in loss_curve(run)]
    assert curve == [(10, first), (20, pytest.approx((second + third) / 2))]
    assert mean_loss(run) == pytest.approx((10 * first + 5 * second + 5 * third) / 20)
    (tmp_path / "bn" / "seed1" / "metrics.jsonl").write_text("damaged\n")
    assert loss_curve(run) == [] and mean_loss(run) is None


def test_the_claims_hold_where_they_should(tmp_path: Path) -> None:
    write_study(tmp_path / "runs")
    assert verdicts(tmp_path / "runs", tmp_path)["claims"] == ["holds", "holds"]
    text = (tmp_path / "claims.md").read_text()
    assert "SN (1,4) - IN (1,4)" in text
    assert "IN's weight in 3 seeds: μ 0.4000 to 0.4200, σ 0.4000 to 0.4200" in text


def test_large_losses_are_rounded_to_significant_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for norm, level in LEVELS.items():
        monkeypatch.setitem(LEVELS, norm, 1234567 * level)
    write_study(tmp_path / "runs")
    verdicts(tmp_path / "runs", tmp_path)
    # The means over steps are 5.55 and 11.1 levels; their median has eight digits.
    pattern = r"SN \(1,4\) - IN \(1,4\): -6852000 \[-\d{4}000, -\d{4}000\], claimed ≤ 0, margin \+"
    assert re.search(pattern, (tmp_path / "claims.md").read_text())
    table = write_tables(tmp_path / "runs", tmp_path, PAPER, ["table2"]).text
    assert "2469000 ± 0 (3)" in table and "SN-BN" in table


@pytest.mark.parametrize(
    ("weight", "verdict"), [(0.32, "undecided"), (0.3, "does not hold"), (0.34, "holds")]
)
def test_the_weight_is_counted_over_seeds(tmp_path: Path, weight: float, verdict: str) -> None:
    write_study(tmp_path / "runs", weight)
    assert verdicts(tmp_path / "runs", tmp_path)["claims"][1] == verdict


def test_claims_need_all_methods(tmp_path: Path) -> None:
    write_study(tmp_path / "runs", methods=("bn", "in"))
    assert verdicts(tmp_path / "runs", tmp_path)["claims"] == ["not tested", "not tested"]


def test_a_statement_may_be_about_the_score_of_a_task(tmp_path: Path) -> None:
    write_study(tmp_path / "runs")
    statement = {"text": "IN ends below BN.", "quantity": "score", "first": "bn 1x4"}
    statement |= {"second": "in 1x4", "at_least": 1.5}
    study = {"data": "images", "model": "transform_net", "row": "wave", "task": "stylization"}
    file = tmp_path / "expected.yaml"
    file.write_text(json.dumps({**study, "expected": [statement]}))
    assert verdicts(tmp_path / "runs", tmp_path, file)["expected"] == ["holds"]
    file.write_text(json.dumps({**study, "row": "other", "expected": [statement]}))
    assert verdicts(tmp_path / "runs", tmp_path, file)["expected"] == ["not tested"]


@pytest.mark.filterwarnings("error")  # such as a layout that cannot be applied
def test_figure_6a_has_the_losses_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(tmp_path / "runs")
    shown: list[str] = []
    draw = Text.draw

    def noted(text: Text, renderer: Any) -> None:
        shown.append(text.get_text())
        draw(text, renderer)

    monkeypatch.setattr(Text, "draw", noted)
    figures = write_figures(tmp_path / "runs", tmp_path)
    assert {"fig6a.png", "fig6a.pdf"} <= {path.name for path in figures.paths}
    assert "training loss" in shown and not any("$" in text for text in shown)
    assert any("no fig9: no run has stylized images" in warning for warning in figures.warnings)
    content = json.loads((tmp_path / "fig6a.json").read_text())
    assert [series["panel"] for series in content["series"]] == [
        panel for panel in ("total", "style", "feature") for _ in LEVELS
    ]
    (total,) = [s for s in content["series"] if (s["panel"], s["label"]) == ("total", "BN")]
    assert total["x"] == [10, 20] and total["seeds"] == 3
    assert total["y"] == pytest.approx([3 * 8.1, 3 * (4 + 2) / 2])
    assert total["low"][0] == pytest.approx(3 * 8.1 - 0.3)  # one standard deviation


def test_figure_9_shows_what_all_methods_stylized(tmp_path: Path) -> None:
    write_study(tmp_path / "runs")
    picture = np.random.default_rng(0).random((20, 30, 3))
    for norm in LEVELS:
        folder = tmp_path / "runs" / norm / "seed1" / "stylized"
        (folder / "content").mkdir(parents=True)
        imsave(folder / "style.png", picture)
        for name in ("china", "flower") if norm != "bn" else ("china",):
            imsave(folder / f"{name}.png", picture)
            imsave(folder / "content" / f"{name}.png", picture)
    figures = write_figures(tmp_path / "runs", tmp_path)
    assert {"fig9.png", "fig9.pdf"} <= {path.name for path in figures.paths}
    content = json.loads((tmp_path / "fig9.json").read_text())
    assert [(one["panel"], one["label"]) for one in content["series"]] == [
        ("china.png", title) for title in ("content", "style", "IN", "SN", "BN")
    ]
