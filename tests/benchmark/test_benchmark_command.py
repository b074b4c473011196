"""The command line of the benchmarks: an error names the argument and what is expected."""

from __future__ import annotations

import pytest
import torch

from sn_imagenet.benchmark.command import run
from sn_imagenet.errors import UserError

ONE_SHAPE = ["norms", "--samples", "2", "--every", "12"]
DIGITS = ["train", "data=digits", "model=resnet14_mini", "norm=sn"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*ONE_SHAPE, "--only", "mine"], "--only 'mine': expected some of 'nn.BatchNorm2d', "),
        ([*ONE_SHAPE, "--graph"], "--graph needs a CUDA device, not cpu"),
        (["loader", "--images", ".", "--workers", "9999"], "--workers 9999: expected 0 to"),
        (["step", "--dtype", "fp32", "bf16"], "trainer.precision=bf16: needs CUDA"),
        (["step", "--only", "mine"], "--only 'mine': expected some of 'nn.BatchNorm2d', "),
        (["step", "model.color=red"], "model.color=red: unknown config key"),
        (["step", "--network", "resnet51"], "--network resnet51: expected resnet50_mini"),
        ([*DIGITS, "--steps", "60"], "--steps 60: expected at least two reports, 100 steps; or"),
        (
            [*DIGITS, "batch=8x2", "trainer.epochs=1", "--steps", "100"],
            "--steps 100: the run has only 87 steps",
        ),
        (["train", "data=nothing"], "data=nothing: unknown choice"),
    ],
)
def test_user_errors(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run("", [*arguments, "--device", "cpu", "--repeats", "1"])
    assert message in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="requires a machine without CUDA")
def test_a_missing_device_is_a_user_error() -> None:
    with pytest.raises(UserError, match="PyTorch finds no CUDA device; use --device cpu"):
        run("", ["norms", "--device", "cuda"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "data=digits", "--unknown=3"],
        ["train", "data=digits", "--steps", "6", "word"],
        ["norms", "--repeats", "1", "norm=sn"],
    ],
)
def test_unknown_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("", arguments)
    assert f"unrecognized arguments: {arguments[-1]}" in capsys.readouterr().err
