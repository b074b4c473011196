"""A run from its config to its result: prepare, train, evaluate."""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

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
    sum_over_ranks,
    together,
    world_size,
)
from sn_imagenet.runs import (
    CheckpointSaver,
    MetricsLog,
    RunDirectory,
    RunError,
    checkpoint,
)
from sn_imagenet.training.console import Progress
from sn_imagenet.training.recorder import Recorder
from sn_imagenet.training.stepper import Stepper
from sn_imagenet.training.stop import (
    EXIT_CODE,
    LostPeerError,
    Stopped,
    StopRequests,
    lost_peers_told,
)


def train(config: ExperimentConfig) -> dict[str, Any]:
    """Run one cell to its result, or continue it from its last checkpoint.

    Returns:
        What ``result.json`` holds; a finished run's as it lies there.

    Raises:
        UserError: something that the user can mend, before any work is lost.
        Stopped: SIGTERM, SIGUSR1 or SIGINT; its checkpoint is saved, the program ends with 75.
    """
    with StopRequests() as stop:
        try:
            return _train(config, stop)
        except Stopped as stopped:
            if not stopped.said:
                say(
                    f"{config.run_dir}: told to stop between two steps; no step is lost, the same "
                    f"command continues (exit code {EXIT_CODE})"
                )
            raise


def _train(config: ExperimentConfig, stop: StopRequests) -> dict[str, Any]:
    join()
    directory = RunDirectory(Path(config.run_dir))
    with together():
        directory.check(config)
        done = _done_before(directory, config)
    if done is not None:
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
        _set_determinism(config.trainer.deterministic, prepared.device)
    with together():
        if rank() == 0:
            directory.claim(config)
    try:
        with together():
            if rank() == 0:
                # Looked at again: another start may have come to its end while this one prepared.
                done = _done_before(directory, config)
                if done is None:
                    directory.result.unlink(missing_ok=True)
        done = from_rank_0(done)
        if done is not None:
            return done
        with lost_peers_told():
            return Trainer(prepared, placement, directory, stop).run()
    except LostPeerError:
        raise  # not this run's failure: it continues where it was saved
    except Exception as error:
        # By whichever rank it befell, since torchrun then ends the others; the first is the cause.
        with suppress(RunError):
            if directory.read_result() is None:
                directory.write_result(make_result(prepared, status="failed", error=f"{error}"))
        raise
    finally:
        if rank() == 0:
            directory.release()


def _set_determinism(deterministic: bool, device: torch.device) -> None:
    """On CUDA the same kernels each time, or an error where there is none; the CPU's are always."""
    if device.type == "cuda":
        torch.use_deterministic_algorithms(deterministic)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.benchmark = False


def _done_before(directory: RunDirectory, config: ExperimentConfig) -> dict[str, Any] | None:
    """The result that an earlier start came to; None if there is something left to do.

    Raises:
        RunError: there is one that cannot be read.
    """
    done = directory.read_result()
    if done is None or done["status"] == "failed":
        return None
    if done["status"] != "diverged" and not done["evaluations"] and config.evaluate:
        return None
    say(f"{directory.path}: already {done['status']}, nothing to do")
    return done


class Trainer:
    """The training of one run, from its start or its last checkpoint."""

    def __init__(
        self,
        prepared: Prepared,
        placement: Placement,
        directory: RunDirectory,
        stop: StopRequests,
    ) -> None:
        config = prepared.config
        self.stop = stop
        self.placement = placement
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
        self.last_finite_loss: float | None = None
        self.world_sizes = [world_size()]
        self.git_revisions = [prepared.provenance["git_revision"]]
        self.total_steps = len(self.loader) * config.trainer.epochs
        if config.trainer.max_steps is not None:
            self.total_steps = min(self.total_steps, config.trainer.max_steps)

        state = self._resume()
        log = None
        with together():
            if rank() == 0:
                log = MetricsLog(directory, state["metrics_bytes"] if state else 0, self.step)
        self.log = log
        say(f"{directory.path}: {placement.describe()}, on {self.device.type}")
        if config.batch.samples_per_gpu == 1 and config.norm.single_sample:
            say(f"one sample per GPU: norm={config.norm.name} uses {config.norm.args}")
        self.progress = Progress(self.total_steps, self.step, config.trainer.epochs)
        self.recorder = Recorder(
            log, self.progress, config.trainer.log_every, config.trainer.epochs
        )
        if state is not None:
            self.recorder.load_state_dict(state["meters"])
        self.saver = None
        if log is not None:
            on_error = config.checkpoint.on_error
            self.saver = CheckpointSaver(directory, log.sync, on_error, self.progress.line)
        self.saved_at = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Train to the end, evaluate, write the result."""
        try:
            diverged = self.fit()
        finally:
            if self.saver is not None:
                self.saver.close()
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
        with together():
            if rank() == 0:
                state = {
                    "model": self.network.state_dict(),
                    "config": self.config.to_dict(),
                    "training": self._training(),
                    "provenance": self.prepared.provenance,
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
        steps_per_epoch = len(self.loader)
        # An epoch whose last step was saved is still to be validated.
        while self.step < self.total_steps or self.step_in_epoch == steps_per_epoch:
            with self.stop.deferred():
                diverged = self._train_epoch()
                if diverged is not None:
                    self._save()
                    self._tell_of_the_checkpoint()
                    return diverged
                self.stepper.share_statistics()
                self._save()
                self._agree_to_stop()
            if self.step_in_epoch == steps_per_epoch:
                validation = validate(self.prepared)
                with self.stop.deferred():
                    self.epoch += 1
                    self.step_in_epoch = 0
                    weights = importance_weights(self.network)
                    self.recorder.validated(self.epoch, self.step, validation, weights)
                    self._save()
        with together():
            if self.saver is not None:
                self.saver.wait()
        return None

    def _train_epoch(self) -> dict[str, Any] | None:
        """The steps that are left of the epoch, or of the run."""
        lr = self.config.lr_at(self.epoch)
        batches = self.loader.epoch(self.epoch, self.step_in_epoch)
        for images, labels in self.recorder.timed(batches):
            # Summed over ranks: who was told to stop, and whether a checkpoint was not written.
            wishes = [self.stop.received, self.saver is not None and self.saver.failed]
            outcome = self.stepper.gradients(images, labels, self.step, wishes)
            if not math.isfinite(outcome.loss):
                self.recorder.flush(self.epoch + 1, self.step, lr)
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
            told_to_stop, not_written = outcome.wishes
            if not_written:
                self._tell_of_the_checkpoint()
            if self.step == self.total_steps:
                break
            if told_to_stop:
                self._save()
                self._stop_here()
            self._save_if_due()
        self.recorder.flush(self.epoch + 1, self.step, lr)
        return None

    def _agree_to_stop(self) -> None:
        """Stop between epochs if any rank was told to. Collective."""
        wishes = sum_over_ranks(torch.tensor([float(self.stop.received)]))
        if wishes.item():
            self._stop_here()

    def _stop_here(self) -> None:
        """End all ranks, with the checkpoint on the disk. Collective."""
        self._tell_of_the_checkpoint()
        self.progress.line(
            f"{self.directory.path}: told to stop; saved after step {self.step}, the same command "
            f"continues (exit code {EXIT_CODE})"
        )
        raise Stopped(said=True)

    def _tell_of_the_checkpoint(self) -> None:
        """Wait for the disk; if it refused, all ranks raise the error. Collective."""
        with together():
            if self.saver is not None:
                self.saver.wait()

    def _save_if_due(self) -> None:
        minutes = self.config.checkpoint.minutes
        if minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes:
            self._save()

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        if self.log is None or self.saver is None:
            return
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "step_in_epoch": self.step_in_epoch,
            "last_finite_loss": self.last_finite_loss,
            "world_sizes": self.world_sizes,
            "git_revisions": self.git_revisions,
            "metrics_bytes": self.log.bytes_written,
            "meters": self.recorder.state_dict(),
            **self.stepper.state_dict(),
        }
        self.saver.save(state)

    def _resume(self) -> dict[str, Any] | None:
        """Load the newest checkpoint, if there is one. Collective."""
        state: dict[str, Any] | None = None
        with together():
            if rank() == 0:
                state, warnings = checkpoint.load_last(self.directory)
                for warning in warnings:
                    say(f"warning: {warning}; going on from the checkpoint before it")
        state = from_rank_0(state)
        if state is None:
            return None
        self.epoch, self.step = state["epoch"], state["step"]
        self.step_in_epoch = state["step_in_epoch"]
        self.last_finite_loss = state["last_finite_loss"]
        self.world_sizes = [*state["world_sizes"], *self.world_sizes]
        self.git_revisions = [*state["git_revisions"], *self.git_revisions]
        self.stepper.rehearse(self.config.data.image_size, self.placement.samples_per_rank)
        self.stepper.load_state_dict(state)
        say(f"{self.directory.path}: going on after epoch {self.epoch}, step {self.step}")
        return state

    def _training(self) -> dict[str, Any]:
        seconds, samples = self.recorder.total_seconds, self.recorder.total_samples
        return {
            "epochs": self.config.trainer.epochs,
            "steps": self.step,
            "steps_per_epoch": len(self.loader),
            "samples": samples,
            "wall_time_s": round(seconds, 3),
            "images_per_s": round(samples / seconds, 3) if seconds else None,
            "world_size": world_size(),
            "world_sizes": self.world_sizes,
            "git_revisions": self.git_revisions,
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
