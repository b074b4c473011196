"""How far a run is, read from its files alone, while others may be writing them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sn_imagenet.errors import UserError
from sn_imagenet.holders import is_held
from sn_imagenet.reporting.runs import (
    DIVERGED,
    FAILED,
    RUNNING,
    UNREADABLE,
    Run,
    read_run,
)
from sn_imagenet.reporting.tail import last_rows


@dataclass(frozen=True)
class Progress:
    """``epoch`` of ``epochs`` are complete; ``top1`` in percent, ``eta_s`` in seconds of training
    at the last measured ``images_per_s``. None: not known (yet).
    """

    state: str
    epoch: int | None = None
    epochs: int | None = None
    top1: float | None = None
    images_per_s: float | None = None
    eta_s: float | None = None
    detail: str = ""


def read_progress(run_dir: Path) -> Progress | None:
    """The progress of the run in ``run_dir``; None if no run was started there."""
    if not (run_dir / "config.yaml").is_file() and not (run_dir / "result.json").is_file():
        # One that holds the directory has yet to write its config there.
        return Progress(state=RUNNING) if is_held(run_dir / "lock.json") else None
    try:
        return progress_of(read_run(run_dir))
    except UserError as error:
        return Progress(state=UNREADABLE, detail=str(error))


def progress_of(run: Run) -> Progress:
    """The progress of a run that :mod:`sn_imagenet.reporting.runs` has read."""
    train, epoch = last_rows(run.path / "metrics.jsonl")
    epochs = (run.config.get("trainer") or {}).get("epochs")
    top1 = run.top1()
    if top1 is None and epoch is not None and run.state != DIVERGED:
        top1 = float(epoch["val"]["top1"])
    return Progress(
        state=run.state,
        epoch=epoch["epoch"] if epoch else 0,
        epochs=epochs,
        top1=top1,
        images_per_s=float(train["images_per_s"]) if train else None,
        eta_s=_eta(run, train, epoch) if run.state == RUNNING else None,
        detail=run.detail if run.state in (DIVERGED, FAILED, UNREADABLE) else "",
    )


def _eta(run: Run, train: dict[str, Any] | None, epoch: dict[str, Any] | None) -> float | None:
    """Seconds of training left; None before the first epoch has told how long one is."""
    try:
        if train is None or epoch is None or not train["images_per_s"]:
            return None
        trainer = run.config["trainer"]
        total = epoch["step"] / epoch["epoch"] * trainer["epochs"]
        total = min(total, trainer.get("max_steps") or total)
        left = total - max(train["step"], epoch["step"])
        setting = run.cell.setting
        return max(0.0, left * setting.gpus * setting.samples_per_gpu / train["images_per_s"])
    except (KeyError, TypeError, ZeroDivisionError):
        return None  # of another version
