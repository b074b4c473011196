"""Turns steps into rows of ``metrics.jsonl``, tracker scalars and console lines."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, TypeVar

from sn_imagenet.distributed import rank
from sn_imagenet.training.console import Console
from sn_imagenet.training.in_flight import StepOutcome
from sn_imagenet.training.metrics_log import MetricsLog
from sn_imagenet.training.trackers import MOMENTS

T = TypeVar("T")

METERS = (
    "steps", "samples", "correct", "loss", "waited", "seconds", "total_seconds", "total_samples",
)  # fmt: skip


class Recorder:
    """Reports averages over the steps since the last report; images/s counts training steps only.

    Args:
        log: receives the rows; None on the ranks that do not write.
        console: receives the progress and the reports.
        every: steps between two reports.
        epochs: number of epochs of the whole training.
    """

    def __init__(self, log: MetricsLog | None, console: Console, every: int, epochs: int) -> None:
        self._log = log
        self._console = console
        self._every = every
        self._epochs = epochs
        self.total_seconds = 0.0
        self.total_samples = 0
        self._reset()

    def _reset(self) -> None:
        self._steps = self._samples = self._correct = 0
        self._loss = self._data_wait = 0.0
        self._report_start = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """The sums since the last report, and the totals before it."""
        return {
            "steps": self._steps,
            "samples": self._samples,
            "correct": self._correct,
            "loss": self._loss,
            "waited": self._data_wait,
            "seconds": time.perf_counter() - self._report_start,
            "total_seconds": self.total_seconds,
            "total_samples": self.total_samples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; time between the two calls is not counted."""
        self._steps, self._samples = state["steps"], state["samples"]
        self._correct, self._loss = state["correct"], state["loss"]
        self._data_wait = state["waited"]
        self._report_start = time.perf_counter() - state["seconds"]
        self.total_seconds, self.total_samples = state["total_seconds"], state["total_samples"]

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Iterate over ``batches`` and measure the time spent waiting for them."""
        if not self._steps:  # otherwise the run was resumed between two reports
            self._reset()
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._data_wait += time.perf_counter() - start
            yield batch

    def add_step(self, outcome: StepOutcome, epoch: int, step: int, lr: float) -> None:
        """Record optimizer step number ``step`` (from 1) of ``epoch`` (from 1)."""
        self._steps += 1
        self._samples += outcome.samples
        self._correct += outcome.top1_correct
        self._loss += outcome.loss
        self._console.advance(epoch)
        if step % self._every == 0:
            self.flush(epoch, step, lr)

    def flush(self, epoch: int, step: int, lr: float) -> None:
        """Report the steps since the last report, if any."""
        if not self._steps:
            return
        now = time.perf_counter()
        seconds = now - self._report_start
        self.total_seconds += seconds
        self.total_samples += self._samples
        row = {
            "loss": self._loss / self._steps,
            "top1": 100 * self._correct / self._samples,
            "lr": lr,
            "images_per_s": self._samples / seconds,
            "data_wait_pct": 100 * self._data_wait / seconds,
        }
        self._write(
            {"kind": "train", "epoch": epoch, "step": step, "steps": self._steps, **row},
            {
                "train/loss": row["loss"],
                "train/top1": row["top1"],
                "opt/lr": lr,
                "perf/images_per_s": row["images_per_s"],
                "perf/data_wait_pct": row["data_wait_pct"],
            },
            step,
        )
        self._console.report(epoch, row["loss"], row["top1"], lr, row["images_per_s"])
        self._reset()
        self._report_start = now  # the time for reporting counts in the next report

    def add_epoch(
        self,
        epoch: int,
        step: int,
        validation: dict[str, Any],
        calibrated: dict[str, Any] | None,
        weights: Sequence[Mapping[str, Any]],
    ) -> None:
        """Record a finished epoch; ``calibrated`` is the validation with the batch average, if any.
        ``weights``: the importance weights of each SN layer, with its ``name`` and ``stage``. The
        tracker gets their means over the layers of each stage.
        """
        scalars = {"val/top1": validation["top1"], **stage_mean_weights(weights)}
        if calibrated:
            scalars["val/top1_batch_average"] = calibrated["top1"]
        row: dict[str, Any] = {
            "kind": "epoch",
            "epoch": epoch,
            "epochs": self._epochs,
            "step": step,
            "val": validation,
        }
        if calibrated:
            row["calibrated"] = calibrated
        if weights:
            row["importance_weights"] = {
                layer["name"]: {moment: layer[moment] for moment in MOMENTS} for layer in weights
            }
        self._write(row, scalars, step)
        top1 = [_format_top1(counts) for counts in (validation, calibrated) if counts]
        self._console.print(f"epoch {epoch}/{self._epochs}  validation top-1 {'; '.join(top1)}")
        self._reset()

    def _write(self, row: dict[str, Any], scalars: dict[str, float], step: int) -> None:
        if self._log is not None and rank() == 0:
            self._log.write(row, scalars, step)


def _format_top1(counts: dict[str, Any]) -> str:
    return (
        f"{counts['top1']:.2f} ({counts['top1_correct']} of {counts['seen']}), "
        f"{counts['statistics'].replace('_', ' ')} statistics"
    )


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
