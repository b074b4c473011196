"""User errors: one clear error message, exit code 2, no files left behind."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import (
    ROOT,
    SMALL,
    check_error,
    check_ok,
    evaluate_forked,
    read_result,
    train,
    train_forked,
)
from PIL import Image
from run_files import first_evaluations

from sn_imagenet.overrides import read_arguments

DIGITS = (*SMALL, "batch=8x2", "trainer.max_steps=3")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["trainer.precision=bf16", "trainer.device=cpu"], ["trainer.precision=bf16", "CUDA"]),
        (["trainer.replicas_per_pass=3"], ["trainer.replicas_per_pass=3", "8 replicas"]),
        (
            ["norm=sync_bn", "trainer.replicas_per_pass=2"],
            ["trainer.replicas_per_pass=2", "SyncBatchNorm2d", "all 8 replicas"],
        ),
        (["calibration.samples=1"], ["calibration.samples=1", "one minibatch of 2 samples"]),
        (["+norm.args.color=red"], ["norm.args=", "color"]),
        (["data=imagenet"], ["data.root", "IMAGENET_ROOT", "data=digits"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_the_invalid_value_is_named(overrides: list[str], parts: list[str], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    done = train_forked(*DIGITS, *overrides, f"runs_dir={runs}", folder=tmp_path / "logs")
    check_error(done, *parts)
    assert not runs.exists()


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["norm=sm"], ["norm=sm", "did you mean norm=sn?", "sync_bn"]),
        (["-m", "norm=bn,sm"], ["norm=sm", "did you mean norm=sn?"]),
        (["batch=8y3"], ["batch=8y3", "8x2", "1x16", "any GxN (GPUs x samples per GPU)"]),
        (["bacth=8x2"], ["bacth=8x2", "did you mean batch=8x2?"]),
        (["trainer.epoch=3"], ["trainer.epoch=3", "did you mean trainer.epochs=3?"]),
        (["trianer.epochs=3"], ["trianer.epochs=3", "did you mean trainer.epochs=3?"]),
        (["trianer.epoch=3"], ["trianer.epoch=3", "did you mean trainer.epochs=3?"]),
        # A suggestion is a key that exists.
        (["sweep_options.jobs=2"], ["sweep_options.jobs=2: unknown config key; expected one of"]),
        (["lr.high=2"], ["lr.high=2: unknown config key; expected one of norm, init"]),
        (["norm=sn", "norm.args.omega.x=3"], ["KEY.x=VALUE: KEY is a list; give all of it"]),
        (["trainer.epochs=0"], ["trainer.epochs=0", "at least 1"]),
        (["norm=bn("], ["norm=bn(", "quote"]),
        (["norm=SN"], ["did you mean norm=sn?"]),
        (["model=resnet18"], ["choice; did you mean model.name=resnet18"]),
        (["model=resnet14_mni"], ["did you mean model=resnet14_mini, or model.name=resnet14_mni"]),
        (["norm=bn,gn"], ["norm=bn,gn: several values; add -m"]),
        (["norm=[bn,gn]"], ["norm=bn,gn: several values; add -m"]),
        (["-m", "norm=[bn,gn]"], ["norm=bn,gn: several values; add -m"]),
        (["seed=0,1"], ["add -m", "-m seed=0,1"]),
        (["batch=8,2"], ["batch=8x2"]),
        (["batch=(8,2)"], ["batch=8x2"]),
        (["batch=8"], ["batch=8: expected GPUs x samples per GPU"]),
        (["norm=sn\r"], ["carriage return", "Windows"]),
        (["lr=0.2"], ["did you mean protocol.base_lr=0.2?"]),
        (["batch_size=16"], ["did you mean batch=GxN"]),
        (["trainer.workers=2"], ["did you mean data.workers=2?"]),
        (["workers=2"], ["did you mean data.workers=2?"]),
        (
            ["seed=1.5"],
            ["error: seed: Value '1.5' of type 'float' could not be converted to Integer\n"],
        ),
        (["norm", "sn"], ["norm: expected OPTION=VALUE, such as norm=sn"]),
        (["--norm", "sn"], ["--norm: write norm=VALUE, without dashes"]),
        (["-batch=8x2"], ["-batch=8x2: write batch=8x2, without dashes"]),
        (["-m", "seed=0,1", "norm.target=nowhere.Norm"], ["norm.target=nowhere.Norm"]),
    ],
    ids=lambda value: value[-1],
)
def test_a_typo_gives_one_line_with_the_nearest_name(
    overrides: list[str], parts: list[str], tmp_path: Path
) -> None:
    runs = f"runs_dir={tmp_path / 'runs'}"
    flags = [word for word in overrides if word == "-m"]  # before all others, as argparse wants
    done = train_forked(*flags, *SMALL, *overrides[len(flags) :], runs, folder=tmp_path / "logs")
    check_error(done, *parts)
    assert done.output.count("\n") == 1
    assert not (tmp_path / "runs" / "digits").exists()


@pytest.mark.parametrize(
    "path", ["/d/a=b", "/d/bücher", "/d#x", "/a[1],b", "/a(b)", "/it's", '/a"b', "/a&b", "/a{b}\\"]
)
def test_a_path_that_hydra_cannot_read_is_printed_as_it_can(path: str, tmp_path: Path) -> None:
    """The words that are printed, given to a shell, are what the user meant."""
    folder = ("data=imagefolder", "data.val=/absent")
    done = train_forked(*folder, f"data.train={path}", folder=tmp_path / "logs")
    check_error(done, f"data.train={path}: Hydra cannot read the value")
    (word,) = shlex.split(done.err.rpartition("Hydra: ")[2])
    done = train_forked(*folder, word, folder=tmp_path / "quoted")
    check_error(done, f"{path} (data.train): there is no such folder")


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_arguments(["a.b=~/x", "--out=~", "--out", "~/y", "run='~/x'", "a=x~y", "~a"]) == [
        *(f"a.b={tmp_path}/x", f"--out={tmp_path}", "--out", f"{tmp_path}/y"),
        *("run='~/x'", "a=x~y", "~a"),  # the last is Hydra's for removing a
    ]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["rum=runs"], ["rum=runs", "did you mean run=runs?"]),
        (["trainer.devise=cpu"], ["did you mean trainer.device=cpu?"]),
        ([], ["run= is missing"]),
    ],
    ids=["rum", "devise", "nothing"],
)
def test_a_typo_in_an_evaluation(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    done = evaluate_forked(*arguments, folder=tmp_path / "logs")
    check_error(done, *parts)
    assert done.output.count("\n") == 1


def test_a_typo_and_missing_data_are_reported_before_torch_is_imported() -> None:
    """The import takes many times as long as the check."""
    program = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print(end.code, 'torch' in sys.modules)"
    )
    absent = ("data=imagefolder", "data.train=/absent", "data.val=/absent")
    for overrides in (["norm=sm"], ["trainer.epochs=0"], ["data=imagenet"], absent):
        line = [sys.executable, "-c", program, *overrides]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout == "2 False\n"


def test_the_resolved_config_is_printed() -> None:
    """In a process of its own, in which nothing else has imported the resolvers."""
    line = [sys.executable, "train.py", "norm=sn", "batch=8x2", "--cfg", "job", "--resolve"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "run_dir: runs/imagenet/resnet50/sn/8x2/seed0\n" in done.stdout


@pytest.mark.parametrize("module", ["hydra", "torch"])
def test_an_interrupt_during_imports_prints_nothing(module: str) -> None:
    program = (
        "import os, runpy, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(name, *_):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting)\n"
        "runpy.run_path('train.py', run_name='__main__')"
    )
    line = [sys.executable, "-c", program, *DIGITS]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (-signal.SIGINT, "")


@pytest.mark.slow
def test_two_processes_report_a_typo_once() -> None:
    done = train("norm=sm", processes=2)
    check_error(done, "did you mean norm=sn?", code=1)  # torchrun's exit code
    assert "exitcode  : 2" in done.err


@pytest.mark.slow
def test_world_size_that_does_not_divide_the_setting(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    done = train(*DIGITS, f"runs_dir={runs}", processes=3)
    # Only one of the three processes prints it; torchrun ends with 1 after a process's 2.
    check_error(done, "3 processes cannot host the setting (8,2)", "1, 2, 4, 8, 16", code=1)
    assert "exitcode  : 2" in done.err
    assert not runs.exists()


def test_a_sweep_continues_after_an_invalid_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    swept = ("-m", "trainer.replicas_per_pass=3,4", "evaluate=false")
    done = train_forked(*swept, *DIGITS, f"runs_dir={runs}", folder=tmp_path / "logs")
    check_error(done, "trainer.replicas_per_pass=3")
    results = [read_result(path.parent) for path in runs.rglob("result.json")]
    assert [r["config"]["trainer"]["replicas_per_pass"] for r in results] == [4]


# Image folders


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Noise images in train/ (24) and val/ (9), with the classes cat, dog and eel."""
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


def _shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


@pytest.mark.slow
def test_truncated_photo_ends_the_run_until_it_is_repaired(photos: Path) -> None:
    broken = photos / "train" / "dog" / "13.jpg"
    whole = broken.read_bytes()
    _shorten(broken)
    done = train(*_arguments(photos))
    check_error(
        done, f"error: in epoch 1: {broken} cannot be read as an image", "Nothing is substituted"
    )
    assert "Traceback" not in done.err
    result = read_result(photos / "run")
    assert result["status"] == "failed"
    assert str(broken) in result["error"]
    assert not (photos / "run" / "lock.json").exists()

    broken.write_bytes(whole)
    check_error(train(*_arguments(photos)), "prepare_data.py", str(photos / "train"))
    repair = [sys.executable, "scripts/prepare_data.py", str(photos / "train"), "--workers=1"]
    repaired = subprocess.run(repair, cwd=ROOT, stdout=-1, text=True, check=True)
    assert "0 bad" in repaired.stdout
    check_ok(train(*_arguments(photos)))
    assert read_result(photos / "run")["status"] == "finished"
    assert {e["seen"] for e in first_evaluations(read_result(photos / "run")).values()} == {9}
