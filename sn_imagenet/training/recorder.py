"""Turns steps into rows of ``metrics.jsonl``, tracker scalars and console lines."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, TypeVar

from sn_imagenet.distributed import rank
from sn_imagenet.runs.scores import score_entry
from sn_imagenet.tasks import Task
from sn_imagenet.training.console import Console
from sn_imagenet.training.metrics_log import MetricsLog
from sn_imagenet.training.stepper import StepOutcome
from sn_imagenet.training.trackers import MOMENTS

T = TypeVar("T")

METERS = ("steps", "samples", "loss", "waited", "seconds", "total_seconds", "total_samples")


class Recorder:
    """Reports averages over the steps since the last report; samples/s counts training steps only.

    Args:
        task: names the sums over samples and makes metrics of them.
        log: receives the rows; None on the ranks that do not write.
        console: receives the progress and the reports.
        every: steps between two reports.
        epochs: number of epochs of the whole training; None if it is counted in steps.
    """

    def __init__(
        self, task: Task, log: MetricsLog | None, console: Console, every: int, epochs: int | None
    ) -> None:
        self._task = task
        self._log = log
        self._console = console
        self._every = every
        self._epochs = epochs
        self.meters: dict[str, Any] = {"total_seconds": 0.0, "total_samples": 0}
        self._reset()

    def _reset(self) -> None:
        self.meters |= {"steps": 0, "samples": 0, "loss": 0.0, "waited": 0.0}
        self.meters |= dict.fromkeys(self._task.sums, 0.0)
        self._report_start = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """The sums since the last report, and the totals before it."""
        return {**self.meters, "seconds": time.perf_counter() - self._report_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; time between the two calls is not counted."""
        self.meters = {name: state[name] for name in (*METERS, *self._task.sums)}
        self._report_start = time.perf_counter() - state["seconds"]

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Iterate over ``batches`` and measure the time spent waiting for them."""
        if not self.meters["steps"]:  # otherwise the run was resumed between two reports
            self._reset()
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.meters["waited"] += time.perf_counter() - start
            yield batch

    def add_step(self, outcome: StepOutcome, epoch: int, step: int, lr: float) -> None:
        """Record optimizer step number ``step`` (from 1) of ``epoch`` (from 1)."""
        added = {"steps": 1, "samples": outcome.samples, "loss": outcome.loss, **outcome.sums}
        for name, value in added.items():
            self.meters[name] += value
        self._console.advance(epoch)
        if step % self._every == 0:
            self.flush(epoch, step, lr)

    def flush(self, epoch: int, step: int, lr: float) -> None:
        """Report the steps since the last report, if any."""
        steps, samples = self.meters["steps"], self.meters["samples"]
        if not steps:
            return
        now = time.perf_counter()
        seconds = now - self._report_start
        self.meters["total_seconds"] += seconds
        self.meters["total_samples"] += samples
        metrics = self._task.metrics({n: self.meters[n] for n in self._task.sums}, samples)
        loss, speed = self.meters["loss"] / steps, samples / seconds
        wait = 100 * self.meters["waited"] / seconds
        row = {"loss": loss, **metrics, "lr": lr, "images_per_s": speed, "data_wait_pct": wait}
        self._write(
            {"kind": "train", "epoch": epoch, "step": step, "steps": steps, **row},
            {
                "train/loss": loss,
                **{f"train/{name}": value for name, value in metrics.items()},
                "opt/lr": lr,
                "perf/images_per_s": speed,
                "perf/data_wait_pct": wait,
            },
            step,
        )
        score = self._task.score
        words = [
            score.format(value) if name == score.key else f"{name} {value:.4f}"
            for name, value in metrics.items()
        ]
        values = [f"loss {loss:.4f}", *words, f"lr {lr:.6g}", f"{speed:.0f} {score.speed_unit}"]
        self._console.report(epoch, "  ".join(values))
        self._reset()
        self._report_start = now  # the time for reporting counts in the next report

    def add_validation(
        self,
        epoch: int | None,
        step: int,
        validation: dict[str, Any] | None,
        calibrated: dict[str, Any] | None,
        weights: Sequence[Mapping[str, Any]],
    ) -> None:
        """Record a finished epoch or, if ``epoch`` is None, a validation within one.

        ``validation``: None without validation data. ``calibrated``: the validation with the batch
        average, if there was one. ``weights``: the importance weights of each SN layer, with its
        ``name`` and ``stage``; the tracker gets their means over the layers of each stage.
        """
        score = self._task.score
        scalars = stage_mean_weights(weights)
        row: dict[str, Any] = {"kind": "validation", "step": step}
        if epoch is not None:
            of_all = {} if self._epochs is None else {"epochs": self._epochs}
            row = {"kind": "epoch", "epoch": epoch, **of_all, "step": step}
        if validation:
            row["val"] = validation
            scalars |= _finite({f"val/{score.key}": validation[score.key]})
        if calibrated:
            row["calibrated"] = calibrated
            scalars |= _finite({f"val/{score.key}_batch_average": calibrated[score.key]})
        row |= score_entry(score)
        if weights:
            row["importance_weights"] = {
                layer["name"]: {moment: layer[moment] for moment in MOMENTS} for layer in weights
            }
        self._write(row, scalars, step)
        where = f"step {step}" if epoch is None else f"epoch {epoch}"
        if epoch is not None and self._epochs is not None:
            where += f"/{self._epochs}"
        words = [
            f"{self._task.describe(numbers)}, {numbers['statistics'].replace('_', ' ')} statistics"
            for numbers in (validation, calibrated)
            if numbers
        ]
        if words:
            self._console.print(f"{where}  validation {score.label} {'; '.join(words)}")
        if epoch is not None:
            self._reset()

    def _write(self, row: dict[str, Any], scalars: dict[str, float], step: int) -> None:
        if self._log is not None and rank() == 0:
            self._log.write(row, scalars, step)


def _finite(scalars: dict[str, float | None]) -> dict[str, float]:
    return {tag: value for tag, value in scalars.items() if value is not None}


def stage_mean_weights(layers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``importance_<moment>/<stage>/<member>``: mean over the layers of a stage with this member.

    Args:
        layers: each with its ``stage`` and, by moment (:data:`MOMENTS`), the weight of each member.
    """
    by_tag: defaultdict[str, list[float]] = defaultdict(list)
    for layer in layers:
        for moment in MOMENTS:
            for member, weight in layer[moment].items():
                by_tag[f"importance_{moment}/{layer['stage']}/{member}"].append(weight)
    return {tag: fmean(weights) for tag, weights in by_tag.items()}
