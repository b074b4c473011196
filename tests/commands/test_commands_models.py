"""Trained runs are carried away, others' weights come in, and training starts from either."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from authors_layer import authors_checkpoint
from command_line import (
    CELL,
    SMALL,
    Done,
    evaluate_forked,
    forked,
    refused,
    result,
    succeeded,
    train_forked,
)
from run_files import first_evaluations

from sn_imagenet.config import from_dict
from sn_imagenet.data.loaders import eval_loader
from sn_imagenet.evaluation import accuracy, prepare
from sn_imagenet.models import load
from sn_imagenet.reporting.render import half_up

pytestmark = pytest.mark.slow  # a whole training first

FEW = ("trainer.max_steps=1", "calibration.samples=32", "data.workers=0")


@pytest.fixture(scope="module")
def exported(cell: tuple[Path, Done], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "sn"
    said = tmp_path_factory.mktemp("said")
    succeeded(forked("scripts/export.py", cell[0], "--out", out, "--license", "mit", folder=said))
    return out


def test_a_trained_cell_is_exported_with_what_it_came_to(
    cell: tuple[Path, Done], exported: Path
) -> None:
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load(exported)(images), load(cell[0])(images))
        assert not torch.equal(load(exported)(images), load(cell[0], "moving_average")(images))
    card = (exported / "README.md").read_text()
    average = first_evaluations(result(cell[0]))["batch_average"]
    row = next(line for line in card.splitlines() if "the weights here" in line)
    assert "batch average" in row
    assert f"{average['top1_correct']}/{average['seen']}" in row
    assert "license: mit" in card


def test_the_export_is_right_as_often_as_the_result_says(
    cell: tuple[Path, Done], exported: Path
) -> None:
    config = from_dict(yaml.safe_load((cell[0] / "config.yaml").read_text()))
    images = prepare(config).data.val
    batches = eval_loader(images, batch_size=100, rank=0, world_size=1, workers=0)
    found = accuracy(load(exported), batches, torch.device("cpu"), nullcontext)
    quoted = first_evaluations(result(cell[0]))["batch_average"]
    assert (found["top1_correct"], found["seen"]) == (quoted["top1_correct"], quoted["seen"])
    assert found["loss"] == pytest.approx(quoted["loss"], rel=1e-5)


def test_training_starts_from_an_export(exported: Path, tmp_path: Path) -> None:
    options = (*SMALL, "norm=sn", "batch=8x2", *FEW, f"init={exported}")
    tuned = (*options, "data.classes=4", f"runs_dir={tmp_path / 'tuned'}")
    done = succeeded(train_forked(*tuned, folder=tmp_path / "said"))
    assert "starting from" in done.out
    assert "a new fc" in done.out
    run = tmp_path / "tuned" / CELL / "sn/8x2/seed0"
    before, after = load(exported).state_dict(), load(run, "moving_average").state_dict()
    assert after["fc.weight"].shape[0] == 4
    torch.testing.assert_close(after["conv1.weight"], before["conv1.weight"], rtol=0, atol=0.05)
    assert {"item": "initial weights", "paper": "random", "ours": str(exported)} in result(run)[
        "departures"
    ]
    other = train_forked(*tuned[:-3], *tuned[-2:], folder=tmp_path / "said3")  # another start
    refused(other, "init:", "run of another config")
    wrong = (*options, "norm=bn", f"runs_dir={tmp_path / 'wrong'}")
    refused(train_forked(*wrong, folder=tmp_path / "said4"), "init=", "is not this one")
    assert not (tmp_path / "wrong").exists()


def test_the_authors_weights_are_evaluated_and_marked_in_the_tables(
    exported: Path, tmp_path: Path
) -> None:
    weights = {k: v for k, v in load(exported).state_dict().items() if "_weight" not in k}
    torch.save(authors_checkpoint(weights, bn=True), tmp_path / "sn.pth")
    run = tmp_path / "runs/official"
    arguments = (tmp_path / "sn.pth", "--out", run, *SMALL, "batch=8x4", "calibration.samples=32")
    script = "scripts/import_official.py"
    succeeded(forked(script, *arguments, folder=tmp_path / "said"))
    succeeded(evaluate_forked(f"run={run}", "data.workers=0", folder=tmp_path / "said2"))
    found = result(run)
    assert {e["statistics"] for e in found["evaluations"]} == {"moving_average", "batch_average"}
    assert (
        found["provenance"]["data_fingerprint"]["val"]["samples"] == found["evaluations"][0]["seen"]
    )
    assert "weights" in {item["item"] for item in found["departures"]}
    tables = ("--runs", tmp_path / "runs", "--out", tmp_path / "tables", "--settings", "8x4")
    shown = succeeded(forked("scripts/make_tables.py", *tables, folder=tmp_path / "said3")).out
    row = next(line for line in shown.splitlines() if "SN (imported)" in line)
    assert str(half_up(found["evaluations"][0]["top1"], 1)) in row
    refused(forked(script, *arguments, folder=tmp_path / "said4"), "holds a run already")
