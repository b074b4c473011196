"""Trackers (``tracker=``): they mirror ``metrics.jsonl`` for watching a run; no table or figure is
made from them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from torch.utils.tensorboard import SummaryWriter

from sn_imagenet.errors import ConfigError
from sn_imagenet.evaluation import all_departures
from sn_imagenet.runs import RunDirectory, write_text
from sn_imagenet.runs.scores import Score
from sn_imagenet.tasks import Prepared

MOMENTS = ("mean", "variance")


def _layout(score: Score) -> dict[str, dict[str, list[Any]]]:
    """Charts with several curves under TensorBoard's "custom scalars"."""
    curves = [f"train/{score.key}", f"val/{score.key}.*"]
    return {
        "training": {
            f"{score.label}, training and validation": ["Multiline", curves],
            "loss": ["Multiline", ["train/loss"]],
            "learning rate": ["Multiline", ["opt/lr"]],
            score.speed_unit: ["Multiline", ["perf/images_per_s"]],
            "waiting for data, %": ["Multiline", ["perf/data_wait_pct"]],
        },
        "importance weights": {
            f"{moment}, {stage}": ["Multiline", [f"importance_{moment}/{stage}/.*"]]
            for moment in MOMENTS
            for stage in (*(f"res{number}" for number in range(1, 6)), "fpn", "box", "mask")
        },
    }


class Tracker:
    """A metric logger; this one logs nothing. Disk errors are raised as OSError."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers by tag, after optimizer step ``step``."""

    def picture(self, tag: str, pixels: np.ndarray, step: int) -> None:
        """Log a picture, uint8 [H, W, 3]."""

    def finish(self, value: float) -> None:
        """Log the final score, the one that counts in the table."""

    def close(self) -> None:
        """Write everything still buffered."""


class TensorBoard(Tracker):
    """Event files in the run directory.

    Args:
        step: step from which the run resumes; later steps of an earlier start are dropped.
    """

    def __init__(self, prepared: Prepared, directory: RunDirectory, step: int) -> None:
        self._config, self._score = prepared.config, prepared.task.score
        self._writer = SummaryWriter(str(directory.tensorboard), purge_step=step + 1)
        self._writer.add_custom_scalars(_layout(self._score))
        yaml = OmegaConf.to_yaml(OmegaConf.create(self._config.to_dict()))
        indented = "".join(f"    {line}\n" for line in yaml.splitlines())  # verbatim in Markdown
        self._writer.add_text("config", indented, step)
        departures = all_departures(prepared.task, prepared.data.fingerprint)
        rows = [f"| {row['item']} | {row['paper']} | {row['ours']} |\n" for row in departures]
        table = "| departure | paper | this run |\n|---|---|---|\n" + "".join(rows)
        self._writer.add_text("departures", table if rows else "none", step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def picture(self, tag: str, pixels: np.ndarray, step: int) -> None:
        self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def finish(self, value: float) -> None:
        config = self._config
        distinguishing = {
            "data": config.data.name,
            "model": config.model.name,
            "norm": config.norm.name,
            "gpus": config.batch.gpus,
            "samples_per_gpu": config.batch.samples_per_gpu,
            "initial_lr": config.initial_lr,
            "epochs": config.trainer.epochs,
            "seed": config.seed,
        }
        score = {f"final/{self._score.key}": value}
        self._writer.add_hparams(distinguishing, score, run_name=".")

    def close(self) -> None:
        self._writer.close()


class Trackio(Tracker):
    """Trackio's local store (``TRACKIO_DIR``), with wandb's interface but without an account. It
    gets the config at the start, from which the departures follow.

    A resumed run continues the same trackio run, whose name is drawn once and kept in the run
    directory. The steps since the checkpoint appear twice: trackio cannot delete logged steps.
    """

    def __init__(self, prepared: Prepared, directory: RunDirectory) -> None:
        try:
            import trackio
        except ModuleNotFoundError as error:
            raise ConfigError(
                "tracker=trackio: trackio is not installed; pip install -e '.[trackio]', or "
                "use tracker=tensorboard"
            ) from error
        config, self._score = prepared.config, prepared.task.score
        self._image = trackio.Image
        prefix = f"{config.model.name}/{config.norm.name}/{config.batch.name}/seed{config.seed}-"
        name = directory.tracked_as.read_text().strip() if directory.tracked_as.exists() else ""
        if not name.startswith(prefix):  # none yet, or a file copied from another run
            name = prefix + secrets.token_hex(4)
            write_text(directory.tracked_as, f"{name}\n")
        self._run = trackio.init(
            project=config.data.name,
            name=name,
            config=config.to_dict(),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, tag: str, pixels: np.ndarray, step: int) -> None:
        self._run.log({tag: self._image(pixels)}, step=step)

    def finish(self, value: float) -> None:
        self._run.log({f"final/{self._score.key}": value})

    def close(self) -> None:
        self._run.finish()


def make_tracker(prepared: Prepared, directory: RunDirectory, step: int) -> Tracker:
    """The tracker that the config names, for a run that starts or resumes at ``step``."""
    if prepared.config.tracker == "tensorboard":
        return TensorBoard(prepared, directory, step)
    return Trackio(prepared, directory) if prepared.config.tracker == "trackio" else Tracker()
