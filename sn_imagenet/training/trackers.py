"""The live views of a run, ``tracker=``: mirrors of ``metrics.jsonl`` to watch, from which nothing
is made."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch.utils.tensorboard import SummaryWriter

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.errors import ConfigError
from sn_imagenet.runs import RunDirectory, write_text

MOMENTS = ("mean", "variance")
TOP1 = "final/top1"
# What TensorBoard's "custom scalars" lays over one another.
_LAYOUT: dict[str, dict[str, list[Any]]] = {
    "training": {
        "top-1, training and validation": ["Multiline", ["train/top1", "val/top1.*"]],
        "loss": ["Multiline", ["train/loss"]],
        "learning rate": ["Multiline", ["opt/lr"]],
        "images/s": ["Multiline", ["perf/images_per_s"]],
        "waiting for data, %": ["Multiline", ["perf/data_wait_pct"]],
    },
    "importance weights": {
        f"{table}, res{stage}": ["Multiline", [f"importance_{table}/res{stage}/.*"]]
        for table in MOMENTS
        for stage in range(1, 6)
    },
}


class Tracker(Protocol):
    """What a live view is told. Errors of the disk are OSErrors."""

    def describe(self, config: ExperimentConfig, departures: Sequence[Mapping[str, str]]) -> None:
        """What the run is, and where it departs from the paper's protocol."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by tag, after optimizer step ``step``."""

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """A figure of the run as it is."""

    def finish(self, config: ExperimentConfig, top1: float) -> None:
        """What it came to: the top-1 (percent) that stands for the cell."""

    def close(self) -> None:
        """Write what is still to be written."""


class TensorBoard:
    """Event files in the run's directory.

    Args:
        step: from which the run goes on; what an earlier start wrote of later ones is dropped.
    """

    def __init__(self, directory: RunDirectory, step: int) -> None:
        self._step = step
        self._board = SummaryWriter(str(directory.tensorboard), purge_step=step + 1)

    def describe(self, config: ExperimentConfig, departures: Sequence[Mapping[str, str]]) -> None:
        self._board.add_custom_scalars(_LAYOUT)
        yaml = OmegaConf.to_yaml(OmegaConf.create(config.to_dict()))
        indented = "".join(f"    {line}\n" for line in yaml.splitlines())  # Markdown for verbatim
        self._board.add_text("config", indented, self._step)
        rows = [f"| {one['item']} | {one['paper']} | {one['ours']} |\n" for one in departures]
        table = "| departure | paper | this run |\n|---|---|---|\n" + "".join(rows)
        self._board.add_text("departures", table if rows else "none", self._step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._board.add_scalar(tag, value, step)

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        self._board.add_figure(tag, figure, step)

    def finish(self, config: ExperimentConfig, top1: float) -> None:
        self._board.add_hparams(hyperparameters(config), {TOP1: top1}, run_name=".")

    def close(self) -> None:
        self._board.close()


class Trackio:
    """Trackio's local store (``TRACKIO_DIR``), with wandb's interface and no account.

    A run that goes on is the one that it was, by the name kept in its directory. The steps since
    the checkpoint are shown again, since what is logged there cannot be taken back.
    """

    def __init__(self, directory: RunDirectory, config: ExperimentConfig) -> None:
        import trackio

        self._image = trackio.Image
        name = run_name(directory, config)
        self._run = trackio.init(
            project=config.data.name,
            name=name,
            config=config.to_dict(),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def describe(self, config: ExperimentConfig, departures: Sequence[Mapping[str, str]]) -> None:
        pass  # the config went with the start, and the departures follow from it

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        self._run.log({tag: self._image(np.asarray(canvas.buffer_rgba()))}, step=step)

    def finish(self, config: ExperimentConfig, top1: float) -> None:
        self._run.log({TOP1: top1})

    def close(self) -> None:
        self._run.finish()


def run_name(directory: RunDirectory, config: ExperimentConfig) -> str:
    """The run's name for trackers that keep their runs elsewhere; drawn once, and kept."""
    if not directory.tracked_as.exists():
        cell = f"{config.model.name}/{config.norm.name}/{config.batch.name}/seed{config.seed}"
        write_text(directory.tracked_as, f"{cell}-{secrets.token_hex(4)}\n")
    return directory.tracked_as.read_text().strip()


class NullTracker:
    """No live view."""

    def describe(self, config: ExperimentConfig, departures: Sequence[Mapping[str, str]]) -> None:
        pass

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        pass

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        pass

    def finish(self, config: ExperimentConfig, top1: float) -> None:
        pass

    def close(self) -> None:
        pass


def hyperparameters(config: ExperimentConfig) -> dict[str, str | int | float]:
    """What tells one run from another."""
    return {
        "data": config.data.name,
        "model": config.model.name,
        "norm": config.norm.name,
        "gpus": config.batch.gpus,
        "samples_per_gpu": config.batch.samples_per_gpu,
        "initial_lr": config.initial_lr,
        "epochs": config.trainer.epochs,
        "seed": config.seed,
    }


def make_tracker(directory: RunDirectory, config: ExperimentConfig, step: int) -> Tracker:
    """The one that ``config`` names, of a run that goes on from ``step``."""
    if config.tracker == "tensorboard":
        return TensorBoard(directory, step)
    return Trackio(directory, config) if config.tracker == "trackio" else NullTracker()


def require_tracker_installed(name: str) -> None:
    """Whether what ``tracker=`` names is installed.

    Raises:
        ConfigError: it is not.
    """
    if name == "trackio" and find_spec("trackio") is None:
        raise ConfigError(
            "tracker=trackio: trackio is not installed; pip install 'sn-imagenet[trackio]', or "
            "choose tracker=tensorboard"
        )
