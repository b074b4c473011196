"""The training of a run: the loop, and what it keeps to go on from."""

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
"""Draws the importance weights of the SN layers of a run in this setting."""

FIGURES_PER_RUN = 10


class Trainer:
    """The training of one run, from its start or its last checkpoint. Making it is collective.

    ``epoch`` counts the epochs that are trained and validated, ``step`` the optimizer steps done or
    in flight, ``step_in_epoch`` those of the present epoch.
    """

    def __init__(
        self,
        prepared: Prepared,
        placement: Placement,
        directory: RunDirectory,
        stop: SignalHandler,
        draw_weights: DrawWeights | None = None,
    ) -> None:
        self.draw_weights = draw_weights
        config = prepared.config
        self.config, self.prepared, self.directory = config, prepared, directory
        self.network = prepared.network
        self.stop = stop
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
        self.world_sizes = [world_size()]
        self.git_revisions = [prepared.provenance["git_revision"]]
        self.norm_backends = [prepared.provenance["norm_backend"]]
        self.compiled: list[dict[str, Any] | None] = [None]

        self.warnings: list[str] = []  # what was found damaged, by this start or an earlier one

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
            print_rank0(f"{directory.path}: going on after epoch {self.epoch}, step {self.step}")
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
                if log.mended:
                    self._warn(f"{directory.metrics} {log.mended}; rebuilt from the checkpoint")
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
            self.saver = CheckpointSaver(directory, log.sync, on_error, self.console.line)
        self.saved_at = time.monotonic()

    def fit(self) -> dict[str, Any] | None:
        """Train from where the run stands to its end, or until the loss or, at the end of an
        epoch or of the training, a weight is not finite.

        Returns:
            None, or where and how the run diverged.

        Raises:
            Interrupted: told to stop; the checkpoint is on the disk.
            RunError: a checkpoint cannot be written, and ``checkpoint.on_error`` is ``stop``.
        """
        # An epoch whose last step was saved is still to be validated.
        while self.step < self.total_steps or self.step_in_epoch == self.steps_per_epoch:
            with self.stop.deferred():
                try:
                    self._train_epoch()
                except LossNotFiniteError as error:
                    return self._diverged_at(error.outcome)
                self.recorder.flush(self.epoch + 1, self.step, self.lr)
                self.stepper.broadcast_statistics()
                if not self.stepper.weights_are_finite():
                    self._wait_for_the_disk()
                    return self._divergence(
                        self.step, "weights are not finite", self.last_finite_loss
                    )
                self._save()
                self._stop_if_any_was_told()
            if self.step_in_epoch == self.steps_per_epoch:
                validation = validate(self.prepared)
                calibrated = validate_calibrated(self.prepared) if self._calibrates() else None
                with self.stop.deferred():
                    self.epoch += 1
                    self.step_in_epoch = 0
                    weights = importance_weight_records(self.network) or []
                    self.recorder.validated(self.epoch, self.step, validation, calibrated, weights)
                    self._log_weights_figure(weights)
                    self._save()
        self._wait_for_the_disk()
        return None

    def _log_weights_figure(self, weights: list[dict[str, Any]]) -> None:
        """A picture of the importance weights, some :data:`FIGURES_PER_RUN` times in a training."""
        every = -(-self.config.trainer.epochs // FIGURES_PER_RUN)
        if self.log is not None and weights and self.draw_weights and self.epoch % every == 0:
            figure = self.draw_weights(weights, self.config.batch)
            self.log.figure("importance weights", figure, self.step)

    def _train_epoch(self) -> None:
        """The steps that are left of the epoch, and of the training."""
        self.lr = learning_rate(self.config, self.epoch)
        batches = self.loader.epoch(self.epoch, self.step_in_epoch)
        for images, labels in self.recorder.timed(batches):
            # Summed over ranks: who was told to stop, whether a checkpoint failed.
            flags = [self.stop.received, self.saver is not None and self.saver.failed]
            self.in_flight.add(self.stepper.forward_backward(images, labels, self.step, flags))
            self.stepper.optimizer_step(self.lr)
            self.step += 1
            self.step_in_epoch += 1
            told_to_stop, checkpoint_failed = self.in_flight.due()
            if checkpoint_failed:
                self._wait_for_the_disk()
            if self.step == self.total_steps:
                break
            if told_to_stop:
                self.in_flight.all()
                if self.stepper.weights_are_finite():
                    self._save()
                    self._stop()
            self._save_if_due()
        self.in_flight.all()

    def _record(self, outcome: StepOutcome) -> None:
        self.last_finite_loss = outcome.loss
        self.recorder.step(outcome, self.epoch + 1, outcome.step + 1, self.lr)

    def _diverged_at(self, outcome: StepOutcome) -> dict[str, Any]:
        """End with all as it was before the step of ``outcome``."""
        self.in_flight.forget()
        self.stepper.rollback(outcome.step)
        self.step_in_epoch -= self.step - outcome.step
        self.step = outcome.step
        self.recorder.flush(self.epoch + 1, self.step, self.lr)
        self._save()
        self._wait_for_the_disk()
        return self._divergence(self.step + 1, f"the loss is {outcome.loss}", outcome.loss)

    def close(self) -> None:
        """Let go of the files and the terminal; a checkpoint under way is written first."""
        if self.saver is not None:
            self.saver.close()
        self.console.close()
        if self.log is not None:
            self.log.close()

    def summary(self) -> dict[str, Any]:
        """How long and how fast the run has trained, on how many processes, as JSON."""
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

    def _calibrates(self) -> bool:
        """Whether the epoch that ends is validated with the batch average too."""
        every = self.config.calibration.every
        has_both = stores_statistics(self.prepared.network)
        return every is not None and has_both and (self.epoch + 1) % every == 0

    def _divergence(self, step: int, cause: str, loss: float | None) -> dict[str, Any]:
        return {
            "epoch": self.epoch + 1,
            "step": step,
            "cause": cause,
            "loss": str(loss),
            "last_finite_loss": self.last_finite_loss,
        }

    def _stop_if_any_was_told(self) -> None:
        """Agree between epochs, where no step does it on the way. Collective."""
        told = all_reduce_sum(torch.tensor([float(self.stop.received)]))
        if told.item():
            self._stop()

    def _stop(self) -> None:
        """End all ranks, with the checkpoint on the disk. Collective."""
        self._wait_for_the_disk()
        self.console.line(
            f"{self.directory.path}: told to stop; saved after step {self.step}, the same command "
            f"continues (exit code {EXIT_CODE})"
        )
        raise Interrupted(reported=True)

    def _wait_for_the_disk(self) -> None:
        """Until the checkpoints are written; if one failed, all ranks raise it. Collective."""
        with raise_on_all_ranks():
            if self.saver is not None:
                self.saver.wait()

    def _save_if_due(self) -> None:
        minutes = self.config.checkpoint.minutes
        if minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes:
            self._save()

    def _save(self) -> None:
        """Begin to write a checkpoint, but none with broken weights, after which nothing but
        divergence can come: it would take the place of one to go on from.
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
        """The inverse of :meth:`_save`, but for the recorder, which is made later."""
        self.epoch, self.step = state["epoch"], state["step"]
        self.step_in_epoch = state["step_in_epoch"]
        self.last_finite_loss = state["last_finite_loss"]
        self.world_sizes = [*state["world_sizes"], *self.world_sizes]
        self.git_revisions = [*state["git_revisions"], *self.git_revisions]
        # Checkpoints of before say nothing of it.
        self.norm_backends = [*state.get("norm_backends", [None]), *self.norm_backends]
        self.compiled = [*state.get("compiled", [None]), *self.compiled]
        self.warnings = [*state["warnings"], *self.warnings]
        self.stepper.load_state_dict(state)

    def _warn(self, warning: str) -> None:
        """Say it, and keep it for the result."""
        print_rank0(f"warning: {warning}")
        self.warnings.append(warning)
