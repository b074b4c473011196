"""Turns steps into rows of ``metrics.jsonl``, scalars of the live view and console lines."""

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
    """Averages over the steps since the last report; images/s count training steps alone.

    Args:
        log: where rows go; None on the ranks that do not write.
        console: where steps and epochs are told.
        every: steps between two reports.
        epochs: of the whole training.
    """

    def __init__(self, log: MetricsLog | None, console: Console, every: int, epochs: int) -> None:
        self._log = log
        self._console = console
        self._every = every
        self._epochs = epochs
        self.total_seconds = 0.0
        self.total_samples = 0
        self._clear()

    def _clear(self) -> None:
        self._steps = self._samples = self._correct = 0
        self._loss = self._waited = 0.0
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """The steps since the last report, and what lies before them."""
        return {
            "steps": self._steps,
            "samples": self._samples,
            "correct": self._correct,
            "loss": self._loss,
            "waited": self._waited,
            "seconds": time.perf_counter() - self._since,
            "total_seconds": self.total_seconds,
            "total_samples": self.total_samples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; the time between the two is not counted."""
        self._steps, self._samples = state["steps"], state["samples"]
        self._correct, self._loss = state["correct"], state["loss"]
        self._waited = state["waited"]
        self._since = time.perf_counter() - state["seconds"]
        self.total_seconds, self.total_samples = state["total_seconds"], state["total_samples"]

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, with the time spent waiting for them measured."""
        if not self._steps:  # else a resumed run goes on within a report
            self._clear()
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - start
            yield batch

    def step(self, outcome: StepOutcome, epoch: int, step: int, lr: float) -> None:
        """One optimizer step is done: number ``step`` (from 1), in ``epoch`` (from 1)."""
        self._steps += 1
        self._samples += outcome.samples
        self._correct += outcome.top1_correct
        self._loss += outcome.loss
        self._console.advance(epoch)
        if step % self._every == 0:
            self.flush(epoch, step, lr)

    def flush(self, epoch: int, step: int, lr: float) -> None:
        """Report the steps since the last report, if there are any."""
        if not self._steps:
            return
        now = time.perf_counter()
        seconds = now - self._since
        self.total_seconds += seconds
        self.total_samples += self._samples
        row = {
            "loss": self._loss / self._steps,
            "top1": 100 * self._correct / self._samples,
            "lr": lr,
            "images_per_s": self._samples / seconds,
            "data_wait_pct": 100 * self._waited / seconds,
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
        self._clear()
        self._since = now  # what reporting took is the next report's

    def validated(
        self,
        epoch: int,
        step: int,
        validation: dict[str, Any],
        calibrated: dict[str, Any] | None,
        weights: Sequence[Mapping[str, Any]],
    ) -> None:
        """An epoch is done and validated; ``calibrated``: by its batch average too, if it was;
        ``weights`` are the importance weights of each SN layer, with its ``name`` and ``stage``.
        Shown are their means over each stage's layers.
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
                layer["name"]: {table: layer[table] for table in MOMENTS} for layer in weights
            }
        self._write(row, scalars, step)
        told = [_told(counts) for counts in (validation, calibrated) if counts]
        self._console.line(f"epoch {epoch}/{self._epochs}  validation top-1 {'; '.join(told)}")
        self._clear()

    def _write(self, row: dict[str, Any], scalars: dict[str, float], step: int) -> None:
        if self._log is not None and rank() == 0:
            self._log.write(row, scalars, step)


def _told(counts: dict[str, Any]) -> str:
    return (
        f"{counts['top1']:.2f} ({counts['top1_correct']} of {counts['seen']}), "
        f"{counts['statistics'].replace('_', ' ')} statistics"
    )


def stage_mean_weights(layers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``importance_<table>/<stage>/<member>``: over those layers of a stage that have the member.

    Args:
        layers: each with its ``stage`` and, by table (:data:`MOMENTS`), the weight by member.
    """
    found: defaultdict[str, list[float]] = defaultdict(list)
    for layer in layers:
        for table in MOMENTS:
            for member, weight in layer[table].items():
                found[f"importance_{table}/{layer['stage']}/{member}"].append(weight)
    return {tag: fmean(weights) for tag, weights in found.items()}
