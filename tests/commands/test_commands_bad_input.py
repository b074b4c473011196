"""What a user gets wrong: one clear error, exit code 2, nothing left behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import SMALL, refused, result, succeeded, train, train_forked
from PIL import Image

DIGITS = (*SMALL, "batch=8x2", "trainer.max_steps=3")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["batch.gpus=0"], ["batch.gpus=0", "at least 1"]),
        (["trainer.epochs=many"], ["trainer.epochs", "'many'"]),
        (["trainer.precision=bf16", "trainer.device=cpu"], ["trainer.precision=bf16", "CUDA"]),
        (["trainer.replicas_per_pass=3"], ["trainer.replicas_per_pass=3", "8 replicas"]),
        (
            ["norm=gn", "norm.test_statistics=batch_average"],
            ["norm.test_statistics=batch_average", "norm=gn has sample only"],
        ),
        (["+norm.args.colour=red"], ["norm.args=", "colour"]),
        (["norm.args.omega=[in,of]"], ["norm.args=", "of", "in, ln, bn, gn"]),
        (["norm.target=nowhere.Norm"], ["norm.target=nowhere.Norm", "PYTHONPATH"]),
        (["model.name=resnet9000"], ["model.name=resnet9000", "timm"]),
        (["data=imagenet"], ["data.root", "IMAGENET_ROOT", "data=digits"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_wrong_value_is_named(overrides: list[str], parts: list[str], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    done = train_forked(*DIGITS, *overrides, f"runs_dir={runs}", folder=tmp_path / "said")
    refused(done, *parts)
    assert not runs.exists()


@pytest.mark.parametrize(
    ("override", "parts"),
    [("batch=8x3", ["batch/8x3", "8x2", "1x16"]), ("norm=xn", ["norm/xn", "bn", "sn"])],
)
def test_unknown_choice_lists_what_there_is(
    override: str, parts: list[str], tmp_path: Path
) -> None:
    runs = f"runs_dir={tmp_path / 'runs'}"
    done = train_forked(*SMALL, override, runs, folder=tmp_path / "said")
    assert done.code == 1  # Hydra's
    assert "Traceback" not in done.err
    for part in parts:
        assert part in done.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_world_size_that_does_not_fit(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    done = train(*DIGITS, f"runs_dir={runs}", processes=3)
    # All three know, one says so; torchrun itself ends with 1 after a process's 2.
    refused(done, "3 processes cannot host the setting (8,2)", "1, 2, 4, 8, 16", code=1)
    assert "exitcode  : 2" in done.err
    assert not runs.exists()


def test_a_sweep_goes_on_past_a_wrong_cell(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    swept = ("-m", "trainer.replicas_per_pass=3,4", "evaluate=false")
    done = train_forked(*swept, *DIGITS, f"runs_dir={runs}", folder=tmp_path / "said")
    refused(done, "trainer.replicas_per_pass=3")
    found = [result(path.parent) for path in runs.rglob("result.json")]
    assert [one["config"]["trainer"]["replicas_per_pass"] for one in found] == [4]


# Image folders


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """train/ (24 images of noise) and val/ (9) with the classes cat, dog and eel."""
    noise = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 9)):
        for i in range(count):
            file = tmp_path / part / ("cat", "dog", "eel")[i % 3] / f"{i:02}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = noise.integers(0, 256, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(file, "JPEG")
    return tmp_path


def _arguments(photos: Path) -> list[str]:
    return [
        *("data=imagefolder", f"data.train={photos / 'train'}", f"data.val={photos / 'val'}"),
        *("data.image_size=16", "data.resize_size=20", "data.workers=2", "model=resnet14_mini"),
        *("batch.gpus=2", "batch.samples_per_gpu=4", "trainer.epochs=2"),
        f"run_dir={photos / 'run'}",
    ]


def test_empty_class_folder(photos: Path) -> None:
    (photos / "train" / "fox").mkdir()
    done = train_forked(*_arguments(photos), folder=photos / "said")
    refused(done, str(photos / "train"), "data.train", "fox")
    assert not (photos / "run").exists()


def test_classes_that_differ(photos: Path) -> None:
    shutil.rmtree(photos / "val" / "eel")
    done = train_forked(*_arguments(photos), folder=photos / "said")
    refused(done, "classes of train and val differ", "eel")
    assert not (photos / "run").exists()


def _shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


@pytest.mark.slow
def test_truncated_photo_ends_the_run_until_it_is_mended(photos: Path) -> None:
    broken = photos / "train" / "dog" / "13.jpg"
    whole = broken.read_bytes()
    _shorten(broken)
    done = train(*_arguments(photos))
    refused(done, f"error: {broken} cannot be read as an image", "nothing is substituted")
    assert "Traceback" not in done.err
    found = result(photos / "run")
    assert found["status"] == "failed"
    assert str(broken) in found["error"]
    assert not (photos / "run" / "lock.json").exists()

    broken.write_bytes(whole)
    succeeded(train(*_arguments(photos)))
    assert result(photos / "run")["status"] == "finished"
    assert {e["seen"] for e in result(photos / "run")["evaluations"].values()} == {9}


@pytest.mark.slow
def test_two_processes_name_a_text_file_once(photos: Path) -> None:
    broken = photos / "train" / "dog" / "13.jpg"
    broken.write_text("This is no photograph.")
    done = train(*_arguments(photos), processes=2)
    assert done.code == 1  # torchrun's, after a process's 2
    assert "exitcode  : 2" in done.err
    assert done.err.count(f"error: {broken} cannot be read as an image") == 1
    assert 'train.py", line' not in done.err
    assert result(photos / "run")["status"] == "failed"
    assert str(broken) in result(photos / "run")["error"]


# Disks


def test_directory_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    runs = f"runs_dir={tmp_path / 'file' / 'runs'}"
    done = train_forked(*DIGITS, runs, folder=tmp_path / "said")
    refused(done, f"cannot write {tmp_path / 'file'}", "Not a directory", "runs_dir=")


@pytest.mark.slow
@pytest.mark.parametrize(("kilobytes", "left"), [(1, set()), (600, {"config.yaml", "result.json"})])
def test_full_disk(kilobytes: int, left: set[str], tmp_path: Path) -> None:
    """Full from the start, and full when the first checkpoint is due."""
    run_dir = tmp_path / "run"
    done = train(*DIGITS, "evaluate=false", f"run_dir={run_dir}", kilobytes=kilobytes)
    refused(done, f"cannot write {run_dir}/", "File too large", "free some space")
    assert {path.name for path in run_dir.iterdir()} - {"metrics.jsonl", "tensorboard"} == left
    if left:
        assert result(run_dir)["status"] == "failed"
