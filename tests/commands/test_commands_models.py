"""Export of trained runs, import of official weights, and training from either."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from authors_layer import authors_checkpoint
from command_line import (
    MODEL_DIR,
    SMALL,
    Completed,
    check_error,
    check_ok,
    evaluate_forked,
    read_result,
    run_forked,
    train_forked,
)
from run_files import first_evaluations

from sn_imagenet.models import load
from sn_imagenet.reporting.render import round_half_up

pytestmark = pytest.mark.slow  # needs a whole training run

FEW = ("trainer.max_steps=1", "calibration.samples=32", "data.workers=0")


@pytest.fixture(scope="module")
def exported(base_run: tuple[Path, Completed], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "sn"
    logs = tmp_path_factory.mktemp("logs")
    check_ok(
        run_forked("scripts/export.py", base_run[0], "--out", out, "--license", "mit", folder=logs)
    )
    return out


def test_a_trained_run_is_exported_with_its_accuracy(
    base_run: tuple[Path, Completed], exported: Path
) -> None:
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load(exported)(images), load(base_run[0])(images))
        assert not torch.equal(load(exported)(images), load(base_run[0], "moving_average")(images))
    card = (exported / "README.md").read_text()
    average = first_evaluations(read_result(base_run[0]))["batch_average"]
    assert "these weights hold: batch average." in card
    row = next(line for line in card.splitlines() if "| batch average" in line)
    assert f"{average['top1_correct']}/{average['seen']}" in row
    assert "license: mit" in card


def test_training_starts_from_an_export(exported: Path, tmp_path: Path) -> None:
    options = (*SMALL, "norm=sn", "batch=8x2", *FEW, f"init={exported}")
    tuned = (*options, "data.classes=4", f"runs_dir={tmp_path / 'tuned'}")
    done = check_ok(train_forked(*tuned, folder=tmp_path / "logs"))
    assert "starting from" in done.out
    assert "a new fc" in done.out
    run = tmp_path / "tuned" / MODEL_DIR / "sn/8x2/seed0"
    before, after = load(exported).state_dict(), load(run, "moving_average").state_dict()
    assert after["fc.weight"].shape[0] == 4
    torch.testing.assert_close(after["conv1.weight"], before["conv1.weight"], rtol=0, atol=0.05)
    assert {"item": "initial weights", "paper": "random", "ours": str(exported)} in read_result(
        run
    )["departures"]
    other = train_forked(*tuned[:-3], *tuned[-2:], folder=tmp_path / "logs3")  # without init
    check_error(other, "init:", "run of another config")
    wrong = (*options, "norm=bn", f"runs_dir={tmp_path / 'wrong'}")
    check_error(train_forked(*wrong, folder=tmp_path / "logs4"), "init=", "does not match this one")
    assert not (tmp_path / "wrong").exists()


def test_official_weights_are_evaluated_and_marked_in_the_tables(
    exported: Path, tmp_path: Path
) -> None:
    weights = {k: v for k, v in load(exported).state_dict().items() if "_weight" not in k}
    torch.save(authors_checkpoint(weights, bn=True), tmp_path / "sn.pth")
    run = tmp_path / "runs/official"
    arguments = (tmp_path / "sn.pth", "--out", run, *SMALL, "batch=8x4", "calibration.samples=32")
    script = "scripts/import_official.py"
    check_ok(run_forked(script, *arguments, folder=tmp_path / "logs"))
    check_ok(evaluate_forked(f"run={run}", "data.workers=0", folder=tmp_path / "logs2"))
    result = read_result(run)
    assert {e["statistics"] for e in result["evaluations"]} == {"moving_average", "batch_average"}
    assert (
        result["provenance"]["data_fingerprint"]["val"]["samples"]
        == result["evaluations"][0]["seen"]
    )
    assert "weights" in {item["item"] for item in result["departures"]}
    tables = ("--runs", tmp_path / "runs", "--out", tmp_path / "tables", "--settings", "8x4")
    output = check_ok(run_forked("scripts/make_tables.py", *tables, folder=tmp_path / "logs3")).out
    row = next(line for line in output.splitlines() if "SN (imported)" in line)
    assert str(round_half_up(result["evaluations"][0]["top1"], 1)) in row
    check_error(run_forked(script, *arguments, folder=tmp_path / "logs4"), "already holds a run")
