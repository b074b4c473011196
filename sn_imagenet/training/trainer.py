"""A run from its config to its result: prepare, train, evaluate."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data import train_loader
from sn_imagenet.evaluation import (
    Prepared,
    described_weights,
    evaluate,
    make_result,
    prepare,
    validate,
)
from sn_imagenet.models import PlacedDropout
from sn_imagenet.norms import importance_weights
from sn_imagenet.replicas import (
    Placement,
    from_rank_0,
    join,
    rank,
    say,
    together,
    world_size,
)
from sn_imagenet.runs import MetricsLog, RunDirectory, RunError, checkpoint, provenance
from sn_imagenet.training.console import Progress
from sn_imagenet.training.recorder import Recorder
from sn_imagenet.training.stepper import Stepper


def train(config: ExperimentConfig) -> dict[str, Any]:
    """Run one cell to its result, or continue it from its last checkpoint.

    Returns:
        What ``result.json`` holds; a finished run's as it lies there.

    Raises:
        UserError: something that the user can mend, before any work is lost.
    """
    join()
    directory = RunDirectory(Path(config.run_dir))
    with together():
        directory.check(config)
        done = directory.read_result()
    if done is not None and done["status"] != "failed" and _is_complete(done, config):
        say(f"{directory.path}: already {done['status']}, nothing to do")
        return done

    with together():
        placement = Placement(
            config.batch.gpus,
            config.batch.samples_per_gpu,
            world_size(),
            rank(),
            config.trainer.replicas_per_pass,
        )
        prepared = prepare(config)
    with together():
        if rank() == 0:
            directory.claim(config)
            directory.result.unlink(missing_ok=True)
    try:
        return Trainer(prepared, placement, directory).run()
    except Exception as error:
        # By whichever rank it befell, since torchrun then ends the others; the first is the cause.
        with suppress(RunError):
            if directory.read_result() is None:
                directory.write_result(make_result(prepared, status="failed", error=f"{error}"))
        raise
    finally:
        if rank() == 0:
            directory.release()


def _is_complete(result: dict[str, Any], config: ExperimentConfig) -> bool:
    return result["status"] == "diverged" or bool(result["evaluations"]) or not config.evaluate


class Trainer:
    """The training of one run, from its start or its last checkpoint."""

    def __init__(self, prepared: Prepared, placement: Placement, directory: RunDirectory) -> None:
        config = prepared.config
        self.config, self.prepared, self.directory = config, prepared, directory
        self.network, self.device = prepared.network, prepared.device
        dropout = None
        if config.protocol.dropout:
            classifier = self.network.get_classifier()  # type: ignore[operator]
            dropout = PlacedDropout(classifier, config.protocol.dropout, config.seed)
        self.stepper = Stepper(self.network, config, placement, self.device, dropout)
        self.loader = train_loader(
            prepared.data.train,
            global_batch=config.batch.total,
            rank=rank(),
            world_size=world_size(),
            seed=config.seed,
            workers=config.data.workers,
            pin_memory=self.device.type == "cuda",
        )
        self.epoch = self.step = self.step_in_epoch = 0
        self.seconds = 0.0
        self.samples = 0
        self.last_finite_loss: float | None = None
        self.world_sizes = [world_size()]
        self.total_steps = len(self.loader) * config.trainer.epochs
        if config.trainer.max_steps is not None:
            self.total_steps = min(self.total_steps, config.trainer.max_steps)

        metrics_bytes = self._resume()
        log = None
        with together():
            if rank() == 0:
                log = MetricsLog(directory, metrics_bytes, self.step)
        self.log = log
        self.progress = Progress(self.total_steps, self.step, config.trainer.epochs)
        self.recorder = Recorder(
            log, self.progress, config.trainer.log_every, config.trainer.epochs
        )
        say(f"{directory.path}: {placement.describe()}, on {self.device.type}")
        if config.batch.samples_per_gpu == 1 and config.norm.single_sample:
            say(f"one sample per GPU: norm={config.norm.name} uses {config.norm.args}")

    def run(self) -> dict[str, Any]:
        """Train to the end, evaluate, write the result."""
        try:
            diverged = self.fit()
        finally:
            self.progress.close()
            if self.log is not None:
                self.log.close()
        if diverged is not None:
            say(
                f"{self.directory.path}: diverged at step {diverged['step']} (epoch "
                f"{diverged['epoch']}): the loss is {diverged['loss']}"
            )
            return self._write(status="diverged", diverged=diverged)

        self.stepper.share_statistics()
        if rank() == 0:
            state = {
                "model": self.network.state_dict(),
                "config": self.config.to_dict(),
                "training": self._training(),
                "provenance": provenance(self.device),
                "data_fingerprint": self.prepared.data.fingerprint,
            }
            checkpoint.save(self.directory.final, state)
        if not self.config.evaluate:
            return self._write(status="finished")
        evaluations = evaluate(self.prepared)
        return self._write(status="finished", evaluations=evaluations)

    def fit(self) -> dict[str, Any] | None:
        """Train from where the run stands to its end, or until the loss is not finite.

        Returns:
            None, or where and how the run diverged. The weights are then those before the step.
        """
        config = self.config
        while self.step < self.total_steps:
            lr = config.lr_at(self.epoch)
            batches = self.loader.epoch(self.epoch, self.step_in_epoch)
            for images, labels in self.recorder.timed(batches):
                outcome = self.stepper.gradients(images, labels, self.step)
                if not math.isfinite(outcome.loss):
                    return {
                        "epoch": self.epoch + 1,
                        "step": self.step + 1,
                        "loss": str(outcome.loss),
                        "last_finite_loss": self.last_finite_loss,
                    }
                self.stepper.update(lr)
                self.last_finite_loss = outcome.loss
                self.step += 1
                self.step_in_epoch += 1
                self.recorder.step(outcome, self.epoch + 1, self.step, lr)
                if self.step == self.total_steps:
                    break
            self.recorder.flush(self.epoch + 1, self.step, lr)
            self.stepper.share_statistics()
            if self.step_in_epoch == len(self.loader):
                self.epoch += 1
                self.step_in_epoch = 0
                self._validate()
            self._save()
        return None

    def _validate(self) -> None:
        validation = validate(self.prepared)
        self.recorder.validated(self.epoch, self.step, validation, importance_weights(self.network))

    def _save(self) -> None:
        if self.log is None:
            return
        seconds, samples = self._trained()
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "step_in_epoch": self.step_in_epoch,
            "seconds": seconds,
            "samples": samples,
            "last_finite_loss": self.last_finite_loss,
            "world_sizes": self.world_sizes,
            "metrics_bytes": self.log.bytes_written,
            **self.stepper.state_dict(),
        }
        checkpoint.save_last(self.directory, state)

    def _resume(self) -> int:
        """Load the newest checkpoint; returns how much of the metrics belongs to it."""
        state: dict[str, Any] | None = None
        with together():
            if rank() == 0:
                state, warnings = checkpoint.load_last(self.directory)
                for warning in warnings:
                    say(f"warning: {warning}; going on from the checkpoint before it")
        state = from_rank_0(state)
        if state is None:
            return 0
        self.epoch, self.step = state["epoch"], state["step"]
        self.step_in_epoch = state["step_in_epoch"]
        self.seconds, self.samples = state["seconds"], state["samples"]
        self.last_finite_loss = state["last_finite_loss"]
        self.world_sizes = [*state["world_sizes"], world_size()]
        self.stepper.load_state_dict(state)
        say(f"{self.directory.path}: going on after epoch {self.epoch}, step {self.step}")
        return int(state["metrics_bytes"])

    def _trained(self) -> tuple[float, int]:
        recorder = self.recorder
        return self.seconds + recorder.total_seconds, self.samples + recorder.total_samples

    def _training(self) -> dict[str, Any]:
        seconds, samples = self._trained()
        return {
            "epochs": self.config.trainer.epochs,
            "steps": self.step,
            "steps_per_epoch": len(self.loader),
            "samples": samples,
            "wall_time_s": round(seconds, 3),
            "images_per_s": round(samples / seconds, 3) if seconds else None,
            "world_size": world_size(),
            "world_sizes": self.world_sizes,
        }

    def _write(self, **outcome: Any) -> dict[str, Any]:
        result = make_result(
            self.prepared,
            training=self._training(),
            importance_weights=described_weights(self.network),
            **outcome,
        )
        if rank() == 0:
            self.directory.write_result(result)
        return result
