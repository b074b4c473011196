"""Protocols, settings of any size, real photographs, a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import (
    MODEL_DIR,
    ROOT,
    SMALL,
    check_ok,
    command,
    environment,
    photographs,
    read_result,
    train_forked,
)
from hydra.errors import HydraException
from run_files import first_evaluations

from sn_imagenet.config import ExperimentConfig

Compose = Callable[..., ExperimentConfig]


def test_official_code_at_one_sample_per_gpu(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    chosen = ("norm=sn", "batch=8x1", "protocol=official_code", "trainer.max_steps=20")
    done = check_ok(train_forked(*SMALL, *chosen, f"runs_dir={runs}", folder=tmp_path / "logs"))
    assert re.search(r"one sample per GPU: .*in.*ln", done.out)
    result = read_result(runs / MODEL_DIR / "sn/8x1/seed0")
    assert result["status"] == "finished"
    assert result["cell"]["norm_args"] == {"omega": ["in", "ln"]}
    assert set(first_evaluations(result)) == {"sample"}
    assert list(result["importance_weights"][0]["mean"]) == ["in", "ln"]
    departures = {d["item"]: (d["paper"], d["ours"]) for d in result["departures"]}
    assert departures["dropout"] == ("0.0", "0.5")
    assert departures["last gamma of a block"] == ("1", "0")
    # After 20 steps a gamma that starts at 0 is small, and one that starts at 1 is not.
    weights = torch.load(runs / MODEL_DIR / "sn/8x1/seed0/final.pt")["model"]
    assert weights["layer1.0.bn3.weight"].abs().max() < 0.5
    assert weights["layer1.0.bn2.weight"].min() > 0.5


@pytest.mark.parametrize(("name", "gpus", "samples"), [("4x6", 4, 6), ("3x1", 3, 1), ("8x2", 8, 2)])
def test_any_setting_composes(composed: Compose, name: str, gpus: int, samples: int) -> None:
    config = composed(f"batch={name}")
    assert config == composed(f"batch.gpus={gpus}", f"batch.samples_per_gpu={samples}")
    assert config.batch.name == name
    assert config.run_dir == f"runs/imagenet/resnet50/sn/{name}/seed0"
    assert composed(f"batch={name}", "batch.gpus=5").batch.name == f"5x{samples}"


@pytest.mark.parametrize("name", ["8y2", "x2", "8x", "8x2x2", "-8x2", "8x2.5", "٨x٢"])
def test_other_names_are_unknown(composed: Compose, name: str) -> None:
    with pytest.raises(HydraException):
        composed(f"batch={name}")


def test_a_glob_of_settings_expands_to_the_files_only(tmp_path: Path) -> None:
    plan = ("-m", *SMALL, "norm=sn", "hydra/launcher=local", "sweep.dry_run=true")
    done = train_forked(*plan, "batch=glob(*)", f"runs_dir={tmp_path}", folder=tmp_path / "logs")
    names = [line.split()[0] for line in check_ok(done).out.splitlines() if "/seed0 " in line]
    settings = ("1x16", "1x32", "1x8", "8x1", "8x16", "8x2", "8x32", "8x4", "8x8")
    assert names == [f"{MODEL_DIR}/sn/{setting}/seed0" for setting in settings]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cifar10_small", ("data.image_size=32", "data.resize_size=32", "augment=crop_flip")),
        ("imagenet_sample", ("data.image_size=64", "data.resize_size=72", "augment=official")),
    ],
)
def test_real_photographs(name: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    photos = photographs(name, tmp_path / "photos")
    if photos is None:
        pytest.skip(f"the photographs of {name} are not available beside the project")
    val = photos / "val" if (photos / "val").is_dir() else photos / "train"
    chosen = ("data=imagefolder", f"data.name={name}", f"data.train={photos / 'train'}")
    short = ("norm=sn", "batch=8x2", "model=resnet14_mini", "trainer.max_steps=5")
    small = ("data.workers=1", "calibration.samples=64")
    runs = tmp_path / "runs"
    arguments = (*arguments, *short, *small, f"data.val={val}", f"runs_dir={runs}")
    check_ok(train_forked(*chosen, *arguments, folder=tmp_path / "logs"))
    result = read_result(runs / name / "resnet14_mini/sn/8x2/seed0")
    images = sum(len(files) for _, _, files in os.walk(val, followlinks=True))
    assert {e["seen"] for e in first_evaluations(result).values()} == {images}
    calibration = first_evaluations(result)["batch_average"]["calibration"]
    assert calibration["samples_used"] == 64
    assert result["provenance"]["data_fingerprint"]["val"]["samples"] == images


@pytest.mark.slow
def test_terminal_shows_a_progress_bar(tmp_path: Path) -> None:
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    arguments = ("norm=bn", "batch=8x8", "trainer.epochs=2", "trainer.log_every=5")
    process = subprocess.Popen(
        command("train.py", *SMALL, *arguments, "evaluate=false", f"run_dir={tmp_path / 'run'}"),
        cwd=ROOT,
        env=environment(TERM="xterm"),
        stdin=child,
        stdout=child,
        stderr=child,
    )
    os.close(child)
    printed = b""
    try:
        while part := os.read(parent, 65536):
            printed += part
    except OSError:
        pass  # Linux: the other side has closed
    os.close(parent)
    text = printed.decode()
    assert process.wait() == 0, text
    states = [line.strip() for line in re.split(r"[\r\n]+", text)]
    bars = [state for state in states if state.startswith("epoch 2/2: ")]
    assert bars, text
    # Steps, elapsed and remaining time, then what was measured last.
    assert re.search(r"\| \d+/42 \[\d\d:\d\d, ETA \d\d:\d\d, ", bars[-1]), bars[-1]
    measured = r"loss \d\.\d+  top-1 +\d+\.\d\d  lr 0\.00025  \d+ images/s"
    assert re.search(measured, bars[-1]), bars[-1]
    assert len([state for state in states if "validation top-1" in state]) == 2
    # Messages have their own lines, not after a bar.
    assert [state for state in states if state.startswith(f"{tmp_path / 'run'}: (8,8)")]
    # The plain lines for pipes are not printed as well.
    assert not [state for state in states if re.match(r"epoch \d/2  step", state)]
