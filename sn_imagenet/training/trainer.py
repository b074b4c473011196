"""The training loop of a run, and its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

from sn_imagenet.config import SettingConfig
from sn_imagenet.data.loaders import train_loader
from sn_imagenet.distributed import (
    Placement,
    all_reduce_sum,
    print_rank0,
    raise_on_all_ranks,
    rank,
    world_size,
)
from sn_imagenet.evaluation import (
    Prepared,
    departures,
    importance_weight_records,
    validate,
    validate_calibrated,
)
from sn_imagenet.evaluation.departures import excluded_file_departures
from sn_imagenet.evaluation.prepare import stores_statistics
from sn_imagenet.models import PlacedDropout
from sn_imagenet.runs import RunDirectory, experiment_values
from sn_imagenet.runs.saver import CheckpointSaver
from sn_imagenet.training.console import Console
from sn_imagenet.training.in_flight import LossNotFiniteError, StepOutcome, StepsInFlight
from sn_imagenet.training.metrics_log import MetricsLog, unpack_rows
from sn_imagenet.training.recorder import Recorder
from sn_imagenet.training.resume import load_newest_checkpoint
from sn_imagenet.training.schedule import learning_rate
from sn_imagenet.training.stepper import Stepper
from sn_imagenet.training.stop import EXIT_CODE, Interrupted, SignalHandler
from sn_imagenet.training.trackers import make_tracker

DrawWeights = Callable[[list[dict[str, Any]], SettingConfig], Figure]
"""Draws the importance weights of a run's SN layers; the setting is for the title."""

FIGURES_PER_RUN = 10


class Trainer:
    """Trains a run from its start or its last checkpoint. The constructor is collective.

    ``epoch`` counts trained and validated epochs. ``step`` counts optimizer steps, finished or in
    flight, and ``step_in_epoch`` those of the current epoch.
    """

    def __init__(
        self,
        prepared: Prepared,
        placement: Placement,
        directory: RunDirectory,
        signals: SignalHandler,
        draw_weights: DrawWeights | None = None,
    ) -> None:
        self.draw_weights = draw_weights
        config = prepared.config
        self.config, self.prepared, self.directory = config, prepared, directory
        self.network = prepared.network
        self.signals = signals
        dropout = None
        if config.protocol.dropout:
            classifier = self.network.get_classifier()  # type: ignore[operator]
            dropout = PlacedDropout(classifier, config.protocol.dropout, config.seed)
        self.stepper = Stepper(self.network, config, placement, prepared.device, dropout)
        self.loader = train_loader(
            prepared.data.train,
            global_batch=config.batch.total,
            rank=rank(),
            world_size=world_size(),
            seed=config.seed,
            workers=config.data.workers,
            device=prepared.device,
        )
        self.steps_per_epoch = len(self.loader)
        self.total_steps = self.steps_per_epoch * config.trainer.epochs
        if config.trainer.max_steps is not None:
            self.total_steps = min(self.total_steps, config.trainer.max_steps)
        self.epoch = self.step = self.step_in_epoch = 0
        self.last_finite_loss: float | None = None
        # One entry per start of the run; a resumed run prepends those of its checkpoint.
        self.world_sizes = [world_size()]
        self.git_revisions = [prepared.provenance["git_revision"]]
        self.norm_backends = [prepared.provenance["norm_backend"]]
        self.compiled: list[dict[str, Any] | None] = [None]
        self.warnings: list[str] = []  # about damaged files, from this and earlier starts

        state = load_newest_checkpoint(directory, prepared, self.stepper, self._warn)
        if state is not None or config.trainer.compile:
            start = time.monotonic()
            self.stepper.warm_up(config.data.image_size, placement.samples_per_rank)
            if config.trainer.compile:
                seconds = round(time.monotonic() - start, 3)
                self.compiled = [{"mode": config.trainer.compile, "seconds": seconds}]
                print_rank0(f"{directory.path}: compiled in {seconds:.0f} s")
        if state is not None:
            self._load_state_dict(state)
            print_rank0(f"{directory.path}: Resuming from epoch {self.epoch}, step {self.step}")
        log = None
        with raise_on_all_ranks():
            if rank() == 0:
                rows = unpack_rows(state["metrics"]) if state else b""
                log = MetricsLog(
                    directory, partial(make_tracker, directory, config, self.step), rows
                )
                fingerprint = prepared.data.fingerprint
                log.describe(
                    config,
                    [*departures(config, fingerprint), *excluded_file_departures(fingerprint)],
                )
                if log.damage:
                    self._warn(f"{directory.metrics} {log.damage}; rebuilt from the checkpoint")
        self.log = log
        print_rank0(f"{directory.path}: {placement.describe()}, on {prepared.device.type}")
        if config.batch.samples_per_gpu == 1 and config.norm.single_sample:
            print_rank0(f"one sample per GPU: norm={config.norm.name} uses {config.norm.args}")
        self.console = Console(self.total_steps, self.step, config.trainer.epochs)
        self.recorder = Recorder(log, self.console, config.trainer.log_every, config.trainer.epochs)
        if state is not None:
            self.recorder.load_state_dict(state["meters"])
        self.in_flight = StepsInFlight(prepared.device, self._record)
        self.saver = None
        if log is not None:
            on_error = config.checkpoint.on_error
            self.saver = CheckpointSaver(directory, log.sync, on_error, self.console.print)
        self.saved_at = time.monotonic()

    def fit(self) -> dict[str, Any] | None:
        """Train from the current step to the end, or until the run diverges: a loss is not finite,
        or a weight is not finite after an epoch or the last step.

        Returns:
            None, or where and how the run diverged.

        Raises:
            Interrupted: a signal stopped the run; its checkpoint is on disk.
            RunError: a checkpoint cannot be written, and ``checkpoint.on_error`` is ``stop``.
        """
        # A run that resumes after the last step of an epoch still has to validate it.
        while self.step < self.total_steps or self.step_in_epoch == self.steps_per_epoch:
            with self.signals.deferred():
                try:
                    self._train_epoch()
                except LossNotFiniteError as error:
                    return self._end_diverged(error.outcome)
                self.recorder.flush(self.epoch + 1, self.step, self.lr)
                self.stepper.broadcast_statistics()
                if not self.stepper.weights_are_finite():
                    self._wait_for_checkpoints()
                    return self._describe_divergence(
                        self.step, "weights are not finite", self.last_finite_loss
                    )
                self._save()
                self._interrupt_if_signaled()
            if self.step_in_epoch == self.steps_per_epoch:
                validation = validate(self.prepared)
                calibrated = validate_calibrated(self.prepared) if self._must_calibrate() else None
                with self.signals.deferred():
                    self.epoch += 1
                    self.step_in_epoch = 0
                    weights = importance_weight_records(self.network) or []
                    self.recorder.add_epoch(self.epoch, self.step, validation, calibrated, weights)
                    self._log_weights_figure(weights)
                    self._save()
        self._wait_for_checkpoints()
        return None

    def _log_weights_figure(self, weights: list[dict[str, Any]]) -> None:
        """Log a figure of the importance weights, at most :data:`FIGURES_PER_RUN` per run."""
        every = -(-self.config.trainer.epochs // FIGURES_PER_RUN)
        if self.log is not None and weights and self.draw_weights and self.epoch % every == 0:
            figure = self.draw_weights(weights, self.config.batch)
            self.log.figure("importance weights", figure, self.step)

    def _train_epoch(self) -> None:
        """Train the remaining steps of the epoch, or up to ``total_steps``."""
        self.lr = learning_rate(self.config, self.epoch)
        batches = self.loader.epoch(self.epoch, self.step_in_epoch)
        for images, labels in self.recorder.timed(batches):
            # Two flags of this rank: signal received, checkpoint failed.
            flags = [self.signals.received, self.saver is not None and self.saver.failed]
            self.in_flight.add(self.stepper.forward_backward(images, labels, self.step, flags))
            self.stepper.optimizer_step(self.lr)
            self.step += 1
            self.step_in_epoch += 1
            interrupted, checkpoint_failed = self.in_flight.pop_due()
            if checkpoint_failed:
                self._wait_for_checkpoints()
            if self.step == self.total_steps:
                break
            if interrupted:
                self.in_flight.pop_all()
                if self.stepper.weights_are_finite():
                    self._save()
                    self._interrupt()
            self._save_if_due()
        self.in_flight.pop_all()

    def _record(self, outcome: StepOutcome) -> None:
        self.last_finite_loss = outcome.loss
        self.recorder.add_step(outcome, self.epoch + 1, outcome.step + 1, self.lr)

    def _end_diverged(self, outcome: StepOutcome) -> dict[str, Any]:
        """End training in the state before the step of ``outcome``, whose loss is not finite."""
        self.in_flight.clear()
        self.stepper.rollback(outcome.step)
        self.step_in_epoch -= self.step - outcome.step
        self.step = outcome.step
        self.recorder.flush(self.epoch + 1, self.step, self.lr)
        self._save()
        self._wait_for_checkpoints()
        return self._describe_divergence(self.step + 1, f"the loss is {outcome.loss}", outcome.loss)

    def close(self) -> None:
        """Finish the pending checkpoint, then close the files and the console."""
        if self.saver is not None:
            self.saver.close()
        self.console.close()
        if self.log is not None:
            self.log.close()

    def summary(self) -> dict[str, Any]:
        """Steps, time, speed, processes and warnings of the training, ready for JSON."""
        seconds, samples = self.recorder.total_seconds, self.recorder.total_samples
        return {
            "epochs": self.config.trainer.epochs,
            "steps": self.step,
            "steps_per_epoch": self.steps_per_epoch,
            "samples": samples,
            "wall_time_s": round(seconds, 3),
            "images_per_s": round(samples / seconds, 3) if seconds else None,
            "world_size": world_size(),
            "world_sizes": self.world_sizes,
            "git_revisions": self.git_revisions,
            "norm_backends": self.norm_backends,
            "compiled": self.compiled,
            "warnings": self.warnings,
        }

    def _must_calibrate(self) -> bool:
        """Whether the finished epoch is also validated with the batch average."""
        every = self.config.calibration.every
        has_statistics = stores_statistics(self.prepared.network)
        return every is not None and has_statistics and (self.epoch + 1) % every == 0

    def _describe_divergence(self, step: int, cause: str, loss: float | None) -> dict[str, Any]:
        return {
            "epoch": self.epoch + 1,
            "step": step,
            "cause": cause,
            "loss": str(loss),
            "last_finite_loss": self.last_finite_loss,
        }

    def _interrupt_if_signaled(self) -> None:
        """Stop all ranks if any of them has received a signal. Collective."""
        signaled = all_reduce_sum(torch.tensor([float(self.signals.received)]))
        if signaled.item():
            self._interrupt()

    def _interrupt(self) -> None:
        """Stop all ranks once the checkpoint is on disk. Collective."""
        self._wait_for_checkpoints()
        self.console.print(
            f"{self.directory.path}: Interrupted: checkpoint saved at step {self.step}. "
            f"Run the same command to resume (exit code {EXIT_CODE})."
        )
        raise Interrupted(reported=True)

    def _wait_for_checkpoints(self) -> None:
        """Wait until the checkpoints are written; an error is raised on all ranks. Collective."""
        with raise_on_all_ranks():
            if self.saver is not None:
                self.saver.wait()

    def _save_if_due(self) -> None:
        minutes = self.config.checkpoint.minutes
        if minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes:
            self._save()

    def _save(self) -> None:
        """Start writing a checkpoint. If an in-flight loss or a weight is not finite, keep the last
        checkpoint instead, because the run can only diverge from here.
        """
        self.saved_at = time.monotonic()
        if self.log is None or self.saver is None:
            return
        if not (self.in_flight.read_all() and self.stepper.weights_are_finite()):
            return
        state = {
            "config": experiment_values(self.config.to_dict()),
            "data_fingerprint": self.prepared.data.fingerprint,
            "epoch": self.epoch,
            "step": self.step,
            "step_in_epoch": self.step_in_epoch,
            "last_finite_loss": self.last_finite_loss,
            "world_sizes": self.world_sizes,
            "git_revisions": self.git_revisions,
            "norm_backends": self.norm_backends,
            "compiled": self.compiled,
            "metrics": self.log.state(),
            "warnings": self.warnings,
            "meters": self.recorder.state_dict(),
            **self.stepper.state_dict(),
        }
        self.saver.save(state)

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`_save` stored; ``metrics`` and ``meters`` are restored elsewhere."""
        self.epoch, self.step = state["epoch"], state["step"]
        self.step_in_epoch = state["step_in_epoch"]
        self.last_finite_loss = state["last_finite_loss"]
        self.world_sizes = [*state["world_sizes"], *self.world_sizes]
        self.git_revisions = [*state["git_revisions"], *self.git_revisions]
        # Older checkpoints do not record these.
        self.norm_backends = [*state.get("norm_backends", [None]), *self.norm_backends]
        self.compiled = [*state.get("compiled", [None]), *self.compiled]
        self.warnings = [*state["warnings"], *self.warnings]
        self.stepper.load_state_dict(state)

    def _warn(self, warning: str) -> None:
        """Print a warning and keep it for the result."""
        print_rank0(f"warning: {warning}")
        self.warnings.append(warning)
