"""Turns steps into rows of ``metrics.jsonl``, tracker scalars, and a progress bar or lines."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from statistics import fmean
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from sn_imagenet.distributed import print_rank0, rank
from sn_imagenet.runs import MetricsFile, RunDirectory, decompress_rows
from sn_imagenet.runs.files import disk_errors
from sn_imagenet.runs.scores import TOP1
from sn_imagenet.tasks import Prepared
from sn_imagenet.training.stepper import StepOutcome
from sn_imagenet.training.trackers import MOMENTS, Tracker, make_tracker

T = TypeVar("T")

METERS = ("steps", "samples", "loss", "waited", "seconds", "total_seconds", "total_samples")


class Recorder:
    """Reports averages over the steps since the last report; samples/s counts training steps only.
    Only rank 0 writes and prints.

    Args:
        total_steps: of the training; it starts or resumes at ``step``.
        state: the checkpoint from which it resumes, with the entries of :meth:`state_dict`.

    ``damage``: what was wrong with the ``metrics.jsonl`` of earlier starts; empty if nothing.

    Raises:
        RunError: the files cannot be written (full or read-only disk).
    """

    def __init__(
        self,
        prepared: Prepared,
        directory: RunDirectory,
        step: int,
        total_steps: int,
        state: dict[str, Any] | None,
    ) -> None:
        config, task = prepared.config, prepared.task
        self._task, self._path = task, directory.metrics
        self._every, self._epochs = config.trainer.log_every, config.trainer.epochs
        self._of_epochs = "" if self._epochs is None else f"/{self._epochs}"
        self._file: MetricsFile | None = None
        self._tracker = Tracker()
        self.damage = ""
        if rank() == 0:
            rows = decompress_rows(state["metrics"].numpy().tobytes()) if state else b""
            self._file = MetricsFile(directory.metrics, rows)
            self.damage = self._file.damage
            with self.tracker():
                self._tracker = make_tracker(prepared, directory, step)
        self._start_step, self._start_time = step, time.perf_counter()
        self._total_steps = total_steps
        self._bar = tqdm(
            total=total_steps,
            initial=step,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {n}/{total} "
            "[{elapsed}, ETA {remaining}{postfix}]",
            dynamic_ncols=True,
            disable=rank() != 0 or not sys.stderr.isatty(),
            delay=1e-3,  # from the first step on
        )
        self.meters: dict[str, Any] = {"total_seconds": 0.0, "total_samples": 0}
        self._reset()
        if state is not None:  # time between the checkpoint and now is not counted
            self.meters = {name: state["meters"][name] for name in (*METERS, *task.sums)}
            self._report_start = time.perf_counter() - self.meters["seconds"]

    def _reset(self) -> None:
        self.meters |= {"steps": 0, "samples": 0, "loss": 0.0, "waited": 0.0}
        self.meters |= dict.fromkeys(self._task.sums, 0.0)
        self._report_start = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, on rank 0: ``metrics``, all rows so far, packed (uint8 [bytes]), and
        ``meters``, the sums since the last report and the totals before it."""
        assert self._file is not None
        packed = bytearray(self._file.compressed_rows())
        return {
            "metrics": torch.frombuffer(packed, dtype=torch.uint8),
            "meters": {**self.meters, "seconds": time.perf_counter() - self._report_start},
        }

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
        self._bar.set_description(f"epoch {epoch}{self._of_epochs}", refresh=False)
        self._bar.update()
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
        speed = samples / seconds
        train = {"loss": self.meters["loss"] / steps, **metrics}
        rates = {"images_per_s": speed, "data_wait_pct": 100 * self.meters["waited"] / seconds}
        row = {"kind": "train", "epoch": epoch, "step": step, "steps": steps}
        scalars = {
            f"{group}/{name}": value
            for group, values in (("train", train), ("opt", {"lr": lr}), ("perf", rates))
            for name, value in values.items()
        }
        self.write({**row, **train, "lr": lr, **rates}, scalars, step)
        score = self._task.score
        words = [
            score.format(value) if name == score.key else f"{name} {value:.4f}"
            for name, value in train.items()
        ]
        values = "  ".join([*words, f"lr {lr:.6g}", f"{speed:.0f} {score.speed_unit}"])
        if self._bar.disable:
            per_step = (now - self._start_time) / max(step - self._start_step, 1)
            left = tqdm.format_interval(per_step * (self._total_steps - step))
            progress = f"epoch {epoch}{self._of_epochs}  step {step}/{self._total_steps}"
            print_rank0(f"{progress}  {values}  ETA {left}")
        else:
            self._bar.set_postfix_str(values)
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
        if score != TOP1:
            row["score"] = score.to_dict()
        if weights:
            row["importance_weights"] = {
                layer["name"]: {moment: layer[moment] for moment in MOMENTS} for layer in weights
            }
        self.write(row, scalars, step)
        where = f"step {step}" if epoch is None else f"epoch {epoch}{self._of_epochs}"
        words = [
            f"{self._task.describe(numbers)}, {numbers['statistics'].replace('_', ' ')} statistics"
            for numbers in (validation, calibrated)
            if numbers
        ]
        if words:
            self.print(f"{where}  validation {score.label} {'; '.join(words)}")
        if epoch is not None:
            self._reset()

    def write(self, row: dict[str, Any], scalars: dict[str, float], step: int) -> None:
        """Append ``row`` to the file, and log ``scalars`` at ``step`` to the tracker.

        Raises:
            RunError: the disk cannot be written.
        """
        if self._file is not None:
            self._file.write(row)
            with self.tracker() as tracker:
                tracker.scalars(scalars, step)

    @contextmanager
    def tracker(self) -> Iterator[Tracker]:
        """The tracker, for what is no row; errors as :meth:`write`."""
        # Its thread may fail at any time on a full disk; the error names the metrics file.
        with disk_errors(self._path):
            yield self._tracker

    def print(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar.disable:
            print_rank0(text)
        else:
            self._bar.write(text)

    def sync(self) -> None:
        """Flush the rows to the disk; errors as :meth:`MetricsFile.sync`."""
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        """Close all. Errors are ignored: they must not hide the error that ended the run."""
        self._bar.close()
        if self._file is not None:
            self._file.close()
        with suppress(OSError):
            self._tracker.close()


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
