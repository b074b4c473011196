"""The training loop of a run, and its checkpoints."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from typing import Any

import torch

from sn_imagenet.distributed import (
    Placement,
    all_reduce_sum,
    describe_precision,
    print_rank0,
    raise_on_all_ranks,
    rank,
    world_size,
)
from sn_imagenet.errors import ConfigError
from sn_imagenet.evaluation import importance_weight_records, validate, validate_calibrated
from sn_imagenet.norms.control import stores_statistics
from sn_imagenet.runs import RunDirectory, experiment_values
from sn_imagenet.runs.checkpoint import CheckpointSaver
from sn_imagenet.tasks import Clock, Prepared
from sn_imagenet.tasks.task import phase_position
from sn_imagenet.training.recorder import Recorder
from sn_imagenet.training.resume import load_newest_checkpoint
from sn_imagenet.training.stepper import Stepper
from sn_imagenet.training.stop import EXIT_CODE, Interrupted, SignalHandler


class Trainer:
    """Trains a run. The constructor builds; :meth:`start` loads and warms up. Both are collective.

    ``epoch`` counts finished epochs. ``step`` counts optimizer steps, and ``step_in_epoch`` those
    of the current epoch. An epoch is one pass over each of the task's phases.
    """

    def __init__(
        self,
        prepared: Prepared,
        placement: Placement,
        directory: RunDirectory,
        signals: SignalHandler,
    ) -> None:
        config, task = prepared.config, prepared.task
        self.config, self.prepared, self.directory = config, prepared, directory
        self.task, self.network = task, prepared.network
        self.signals, self.placement = signals, placement
        self.loaders = {
            phase: task.batches(phase, prepared.data, prepared.device) for phase in task.phases
        }
        self.phase_lengths = {phase: len(loader) for phase, loader in self.loaders.items()}
        self.steps_per_epoch = sum(self.phase_lengths.values())
        epochs, max_steps = config.trainer.epochs, config.trainer.max_steps
        limits = [None if epochs is None else self.steps_per_epoch * epochs, max_steps]
        self.total_steps = min(limit for limit in limits if limit is not None)
        every = config.calibration.every or 0
        self.calibrate_every = every * (config.trainer.validate_every or self.steps_per_epoch)
        if every and (prepared.data.val is None or self.calibrate_every > self.total_steps):
            raise ConfigError(
                f"calibration.every={every}: counts validations during training, and there is no "
                f"validation number {every} in these {self.total_steps} steps; use fewer, or null"
            )
        clock = Clock(self.steps_per_epoch, self.total_steps)
        self.stepper = Stepper(task, self.network, config, placement, prepared.device, clock)
        self.epoch = self.step = self.step_in_epoch = 0
        self.validated_step = 0  # of validations within an epoch
        self.last_finite_loss: float | None = None
        # One entry per start of the run; a resumed run prepends those of its checkpoint.
        self.starts = {
            "world_sizes": [world_size()],
            "git_revisions": [prepared.provenance["git_revision"]],
            "norm_backends": [prepared.provenance["norm_backend"]],
        }
        self.warnings: list[str] = []  # about damaged files, from this and earlier starts
        self.saver: CheckpointSaver | None = None  # on rank 0
        self.files = ExitStack()  # leaving it finishes the pending checkpoint and closes them

    def start(self) -> None:
        """Load the newest checkpoint, if any, and open the files that training writes. Collective.

        Raises:
            RunError: no existing checkpoint is usable, or a file cannot be written.
        """
        config, directory, prepared = self.config, self.directory, self.prepared
        state = load_newest_checkpoint(directory, prepared, self.stepper, self._warn)
        if state is not None:
            self.stepper.warm_up()
            self._load_state_dict(state)
            print_rank0(f"{directory.path}: Resuming from epoch {self.epoch}, step {self.step}")
        print_rank0(f"{directory.path}: {self.placement.describe()}, on {prepared.device.type}")
        if line := describe_precision(config.trainer.precision, prepared.device):
            print_rank0(line)
        if config.uses_single_sample and config.norm.single_sample:
            print_rank0(f"one sample per GPU: norm={config.norm.name} uses {config.norm.args}")
        with raise_on_all_ranks():
            self.recorder = Recorder(prepared, directory, self.step, self.total_steps, state)
            self.files.callback(self.recorder.close)
            if state is None:
                own = experiment_values(config.to_dict())
                self.recorder.write({"kind": "run", "config": own}, {}, 0)
            if damage := self.recorder.damage:
                self._warn(f"{directory.metrics} {damage}; rebuilt from the checkpoint")
        if rank() == 0:
            self.saver = CheckpointSaver(directory, self.recorder.sync)
            self.files.callback(self.saver.close)
        self.saved_at = time.monotonic()

    def fit(self) -> dict[str, Any] | None:
        """Train from the current step to the end, or until the run diverges: a loss is not finite,
        or a weight is not finite after an epoch or the last step.

        Returns:
            None, or where and how the run diverged.

        Raises:
            Interrupted: a signal stopped the run; its checkpoint is on disk.
            RunError: a checkpoint cannot be written.
        """
        # A run that resumes after the last step of an epoch still has to validate it.
        while self.step < self.total_steps or self._epoch_is_complete() or self._must_validate():
            with self.signals.deferred():
                loss = self._train_until_validation()
                self.recorder.flush(self.epoch + 1, self.step, self._learning_rate(self.step - 1))
                if loss is not None:
                    return self._diverged(self.step + 1, f"the loss is {loss}", loss)
                self.stepper.broadcast_statistics()
                if not self.stepper.weights_are_finite():
                    cause = "weights are not finite"
                    return self._diverged(self.step, cause, self.last_finite_loss)
                self._save()
                # Of any rank.
                signaled = all_reduce_sum(torch.tensor([float(self.signals.received)]))
                if signaled.item():
                    self._interrupt()
            if self._epoch_is_complete() or self._must_validate():
                self._validate()
        self._wait_for_checkpoints()
        return None

    def _validate(self) -> None:
        """Validate at the end of an epoch or at an interval in steps, and record it."""
        epoch_is_complete, every = self._epoch_is_complete(), self.config.trainer.validate_every
        validation = calibrated = None
        if self.prepared.data.val is not None and (every is None or self._must_validate()):
            validation = validate(self.prepared)
            if self._must_calibrate():
                calibrated = validate_calibrated(self.prepared)
        with self.signals.deferred():
            self.validated_step = self.step
            if epoch_is_complete:
                self.epoch += 1
                self.step_in_epoch = 0
            weights = importance_weight_records(self.network) or []
            epoch = self.epoch if epoch_is_complete else None
            self.recorder.add_validation(epoch, self.step, validation, calibrated, weights)
            if validation and rank() == 0 and self.config.tracker != "none":
                network, data, device = self.network, self.prepared.data, self.prepared.device
                with self.recorder.tracker() as tracker:
                    for name, pixels in self.task.pictures(network, data, device).items():
                        tracker.picture(name, pixels, self.step)
            self._save()

    def _epoch_is_complete(self) -> bool:
        return self.step_in_epoch == self.steps_per_epoch

    def _must_validate(self) -> bool:
        """Whether a validation at an interval in steps is due and not done yet."""
        every = self.config.trainer.validate_every
        return every is not None and self.step % every == 0 and self.step > self.validated_step

    def _train_until_validation(self) -> float | None:
        """Train to the end of the epoch, the next validation or ``total_steps``. Ends earlier at a
        loss that is not finite, before its optimizer step, and returns that loss.
        """
        if self._epoch_is_complete() or self._must_validate():
            return None  # a run that resumes before this validation
        minutes = self.config.checkpoint.minutes
        save_minutes = math.inf if minutes is None else minutes
        for phase, start in list(phase_position(self.phase_lengths, self.step_in_epoch)):
            if start == 0:  # a row of metrics is about one phase
                self.recorder.flush(self.epoch + 1, self.step, self._learning_rate(self.step - 1))
            batches = self.loaders[phase].epoch(self.epoch, start)
            for batch in self.recorder.timed(batches):
                # Flags of this rank: signal received, checkpoint failed, checkpoint due.
                failed = self.saver is not None and self.saver.failed
                due = time.monotonic() - self.saved_at >= 60 * save_minutes
                flags = [self.signals.received, failed, due]
                self.stepper.step(batch, self.step, flags, phase)
                self.step += 1
                self.step_in_epoch += 1
                ends = self.step == self.total_steps or self._must_validate()
                wait = ends or self._epoch_is_complete()
                loss, interrupted, save = self._take_outcomes(wait)
                if loss is not None or ends:
                    return loss
                if interrupted and self.stepper.weights_are_finite():
                    self._save()
                    self._interrupt()
                if save:
                    self._save()
        return None

    def _take_outcomes(self, wait: bool) -> tuple[float | None, bool, bool]:
        """Record the steps whose outcomes are known; ``wait`` for all. A loss that is not finite
        ends this, and takes back the steps from its own on, which updated nothing.

        Every rank waits at the same steps, because it may enter a collective after them.

        Returns:
            That loss or None, whether a signal was received, and whether a checkpoint is due. In
            either case no outcome is left.
        """
        interrupted = save = False
        for outcome in self.stepper.outcomes(wait):
            if not math.isfinite(outcome.loss):
                self.step_in_epoch -= self.step - outcome.step
                self.step = outcome.step
                return outcome.loss, False, False
            self.last_finite_loss = outcome.loss
            rate = self._learning_rate(outcome.step)
            self.recorder.add_step(outcome, self.epoch + 1, outcome.step + 1, rate)
            signaled, checkpoint_failed, due = map(bool, outcome.flags)
            interrupted, save = interrupted or signaled, save or due
            if checkpoint_failed:
                self._wait_for_checkpoints()
        if (interrupted or save) and not wait:
            return self._take_outcomes(wait=True)[0], interrupted, save
        return None, interrupted, save

    def _learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step ``step`` (from 0); before the first, that of it."""
        step = max(0, step)
        phase, _ = next(phase_position(self.phase_lengths, step % self.steps_per_epoch))
        return self.stepper.learning_rate(step, phase)

    def summary(self) -> dict[str, Any]:
        """Steps, time, speed, processes and warnings of the training, ready for JSON."""
        meters = self.recorder.meters
        seconds, samples = meters["total_seconds"], meters["total_samples"]
        return {
            "epochs": self.config.trainer.epochs,
            "steps": self.step,
            "steps_per_epoch": self.steps_per_epoch,
            "samples": samples,
            "wall_time_s": round(seconds, 3),
            "images_per_s": round(samples / seconds, 3) if seconds else None,
            "world_size": world_size(),
            **self.starts,
            "warnings": self.warnings,
        }

    def _must_calibrate(self) -> bool:
        """Whether the validation of this step is repeated with the batch average."""
        due = self.calibrate_every > 0 and self.step % self.calibrate_every == 0
        return due and stores_statistics(self.prepared.network) and self.task.calibrates

    def _diverged(self, step: int, cause: str, loss: float | None) -> dict[str, Any]:
        """Where and how the run diverged, once the checkpoints are written. Collective."""
        self._wait_for_checkpoints()
        return {
            "epoch": self.epoch + 1,
            "step": step,
            "cause": cause,
            "loss": str(loss),
            "last_finite_loss": self.last_finite_loss,
        }

    def _interrupt(self) -> None:
        """Stop all ranks once the checkpoint is on disk. Collective."""
        self._wait_for_checkpoints()
        self.recorder.print(
            f"{self.directory.path}: Interrupted: checkpoint saved at step {self.step}. "
            f"Run the same command to resume (exit code {EXIT_CODE})."
        )
        raise Interrupted(reported=True)

    def _wait_for_checkpoints(self) -> None:
        """Wait until the checkpoints are written; an error is raised on all ranks. Collective."""
        with raise_on_all_ranks():
            if self.saver is not None:
                self.saver.wait()

    def _save(self) -> None:
        """Start writing a checkpoint. If a weight is not finite, keep the last checkpoint instead,
        because the run can only diverge from here.
        """
        self.saved_at = time.monotonic()
        if self.saver is None or not self.stepper.weights_are_finite():
            return
        state = {
            "config": experiment_values(self.config.to_dict()),
            "data_fingerprint": self.prepared.data.fingerprint,
            "epoch": self.epoch,
            "step": self.step,
            "step_in_epoch": self.step_in_epoch,
            "validated_step": self.validated_step,
            "last_finite_loss": self.last_finite_loss,
            **self.starts,
            "warnings": self.warnings,
            **self.recorder.state_dict(),
            **self.stepper.state_dict(),
        }
        self.saver.save(state)

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`_save` stored; :class:`Recorder` restores its own entries."""
        self.epoch, self.step = state["epoch"], state["step"]
        self.step_in_epoch = state["step_in_epoch"]
        self.validated_step = state.get("validated_step", 0)  # older checkpoints have none
        self.last_finite_loss = state["last_finite_loss"]
        for name, own in self.starts.items():
            own[:0] = state.get(name, [None])  # older checkpoints lack norm_backends
        self.warnings = [*state["warnings"], *self.warnings]
        self.stepper.load_state_dict(state)

    def _warn(self, warning: str) -> None:
        """Print a warning and keep it for the result."""
        print_rank0(f"warning: {warning}")
        self.warnings.append(warning)
