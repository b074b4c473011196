"""Protocols, SN at one sample per GPU, a normalizer of one's own, real photographs, a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

import pytest
import torch
from command_line import (
    CELL,
    ROOT,
    SMALL,
    command,
    environment,
    evaluate,
    photographs,
    refused,
    result,
    run,
    succeeded,
    train_forked,
)
from run_files import first_evaluations


def test_official_code_at_one_sample_per_gpu(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    chosen = ("norm=sn", "batch=8x1", "protocol=official_code", "trainer.max_steps=20")
    done = succeeded(train_forked(*SMALL, *chosen, f"runs_dir={runs}", folder=tmp_path / "said"))
    assert re.search(r"one sample per GPU: .*in.*ln", done.out)
    found = result(runs / CELL / "sn/8x1/seed0")
    assert found["status"] == "finished"
    assert found["cell"]["norm_args"] == {"omega": ["in", "ln"]}
    assert set(first_evaluations(found)) == {"sample"}
    assert list(found["importance_weights"][0]["mean"]) == ["in", "ln"]
    departures = {d["item"]: (d["paper"], d["ours"]) for d in found["departures"]}
    assert departures["dropout"] == ("0.0", "0.5")
    assert departures["last gamma of a block"] == ("1", "0")
    # A gamma that starts at 0 is small after 20 steps, one that starts at 1 is not.
    weights = torch.load(runs / CELL / "sn/8x1/seed0/final.pt")["model"]
    assert weights["layer1.0.bn3.weight"].abs().max() < 0.5
    assert weights["layer1.0.bn2.weight"].min() > 0.5


def _page(language: str) -> str:
    """The first block of code in ``language`` of the page on one's own normalizer."""
    page = (ROOT / "docs" / "custom-norm.md").read_text()
    return page.partition(f"```{language}\n")[2].partition("```")[0]


@pytest.mark.slow
def test_own_normalizer_of_the_docs(tmp_path: Path) -> None:
    configs = tmp_path / "my_configs" / "norm"
    configs.mkdir(parents=True)
    (tmp_path / "my_norm.py").write_text(_page("python"))
    (configs / "half.yaml").write_text(_page("yaml"))
    mine = {"cwd": tmp_path, "PYTHONPATH": "."}
    chosen = ("--config-dir", "my_configs", "norm=half", *SMALL, "batch=8x2")
    script, short = str(ROOT / "train.py"), ("trainer.max_steps=10", "calibration.samples=64")
    succeeded(run(script, *chosen, *short, **mine))
    run_dir = tmp_path / "runs" / CELL / "half/8x2/seed0"
    before = result(run_dir)
    assert before["cell"]["test_statistics"] == "batch_average"
    assert set(first_evaluations(before)) == {"moving_average", "batch_average"}
    assert before["importance_weights"] is None

    succeeded(run(str(ROOT / "evaluate.py"), f"run={run_dir}", **mine))
    assert first_evaluations(result(run_dir)) == first_evaluations(before)
    # Elsewhere its module is not to be found, and the error says what to do.
    refused(evaluate(f"run={run_dir}"), "norm.target=my_norm.HalfNorm2d", "PYTHONPATH")

    done = succeeded(
        run("scripts/make_tables.py", "--runs", tmp_path / "runs", "--out", tmp_path / "tables")
    )
    top1 = first_evaluations(before)["batch_average"]["top1"]
    row = next(line for line in done.out.splitlines() if re.match(r"\| *half", line, re.IGNORECASE))
    assert f"{top1:.1f}" in row


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cifar10_small", ("data.image_size=32", "data.resize_size=32", "augment=crop_flip")),
        ("imagenet_sample", ("data.image_size=64", "data.resize_size=72", "augment=official")),
    ],
)
def test_real_photographs(name: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    photos = photographs(name)
    if photos is None:
        pytest.skip(f"the photographs of {name} are not beside the project")
    val = photos / "val" if (photos / "val").is_dir() else photos / "train"
    chosen = ("data=imagefolder", f"data.name={name}", f"data.train={photos / 'train'}")
    short = ("norm=sn", "batch=8x2", "model=resnet14_mini", "trainer.max_steps=5")
    some = ("data.workers=1", "calibration.samples=64")
    runs = tmp_path / "runs"
    arguments = (*arguments, *short, *some, f"data.val={val}", f"runs_dir={runs}")
    succeeded(train_forked(*chosen, *arguments, folder=tmp_path / "said"))
    found = result(runs / name / "resnet14_mini/sn/8x2/seed0")
    images = sum(len(files) for _, _, files in os.walk(val))
    assert {e["seen"] for e in first_evaluations(found).values()} == {images}
    calibration = first_evaluations(found)["batch_average"]["calibration"]
    assert calibration["samples_used"] == 64
    assert found["provenance"]["data_fingerprint"]["val"]["samples"] == images


@pytest.mark.slow
def test_terminal_shows_a_progress_bar(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    arguments = ("norm=bn", "batch=8x8", "trainer.epochs=2", "trainer.log_every=5")
    process = subprocess.Popen(
        command("train.py", *SMALL, *arguments, "evaluate=false", f"run_dir={tmp_path / 'run'}"),
        cwd=ROOT,
        env=environment(TERM="xterm"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:
        pass  # how Linux tells that the other side has closed
    os.close(ours)
    text = shown.decode()
    assert process.wait() == 0, text
    states = [line.strip() for line in re.split(r"[\r\n]+", text)]
    bars = [state for state in states if state.startswith("epoch 2/2: ")]
    assert bars, text
    # Steps, elapsed and remaining time, then what was measured last.
    assert re.search(r"\| \d+/42 \[\d\d:\d\d, ETA \d\d:\d\d, ", bars[-1]), bars[-1]
    measured = r"loss \d\.\d+  top-1 +\d+\.\d\d  lr 0\.00025  \d+ images/s"
    assert re.search(measured, bars[-1]), bars[-1]
    assert len([state for state in states if "validation top-1" in state]) == 2
    # Lines stand on their own, not behind a bar.
    assert [state for state in states if state.startswith(f"{tmp_path / 'run'}: (8,8)")]
    # The lines that a pipe gets are not shown as well.
    assert not [state for state in states if re.match(r"epoch \d/2  step", state)]
