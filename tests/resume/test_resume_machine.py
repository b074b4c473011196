"""Faults of the machine: a full or read-only disk, a clock that jumps."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from run_files import first_evaluations
from run_processes import ROOT, SHORT, finish, start, steps, wait_until

Disk = Callable[..., None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Disk]]:
    """A file system of 48 MB, and a function that mounts it again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> None:
        command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)

    try:
        mount("-o", "size=48m")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs permission to mount a small file system")
    yield folder, mount
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk completely."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(folder).free == 0
    return filler


def weights(run: Path) -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = torch.load(run / "final.pt", weights_only=True)["model"]
    return model


@pytest.mark.slow
def test_a_disk_that_fills_up_loses_no_step(disk, tmp_path, pauses):
    """First during training, then during the evaluation of the trained network."""
    folder, _ = disk
    run = folder / "run"
    short = ("trainer.epochs=2", "checkpoint.minutes=null", *pauses.OVERRIDES)
    pauses.slow_down()
    process = start(run, *short)
    wait_until(lambda: len(steps(run)) > 2)
    filler = fill(folder)
    pauses.release()
    output, code = finish(process)
    assert code == 2, output
    assert re.search(
        r"error: cannot write .*(metrics\.jsonl|\.pt): No space left on device", output
    )
    assert not (run / "lock.json").exists() and not (run / "final.pt").exists()

    filler.unlink()
    pauses.hold(run / "final.pt")
    process = start(run, *short)
    wait_until(lambda: (run / "final.pt").exists())
    filler = fill(folder)
    pauses.release()
    output, code = finish(process)
    assert code == 2, output
    assert re.search(
        r"error: cannot write .*(batch_average\.pt|result\.json): No space left on device", output
    )

    filler.unlink()
    output, code = finish(start(run, *short))
    assert code == 0 and "Resuming from epoch 2, step 42" in output, output
    uninterrupted = tmp_path / "uninterrupted"
    _, code = finish(start(uninterrupted, *short))
    assert code == 0
    assert all(torch.equal(w, weights(uninterrupted)[name]) for name, w in weights(run).items())
    assert steps(run) == list(range(1, 43))
    results = [json.loads((path / "result.json").read_text()) for path in (run, uninterrupted)]
    assert first_evaluations(results[0]) == first_evaluations(results[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [(), ("-m", "norm=bn,sn"), ("-m", "norm=bn,sn", "hydra/launcher=local")],
    ids=["run", "basic sweep", "local sweep"],
)
def test_a_read_only_folder_is_one_clear_error(disk, arguments):
    folder, mount = disk
    mount("-o", "remount,ro")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments, *SHORT[:3], f"runs_dir={folder}/runs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert re.match(r"error: cannot \w+ .*: Read-only file system; .*runs_dir=", done.stderr)
    assert "Traceback" not in done.stderr
