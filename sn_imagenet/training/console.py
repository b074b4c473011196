"""Console output of a training: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from sn_imagenet.distributed import print_rank0, rank


class Console:
    """Progress of a training of ``total`` steps, of which ``done`` are already done."""

    def __init__(self, total: int, done: int, epochs: int | None) -> None:
        self._total = total
        self._start_step = self._done = done
        self._epochs = f"/{epochs}" if epochs is not None else ""
        self._start_time = time.perf_counter()
        layout = "{desc}{percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}, ETA {remaining}{postfix}]"
        hidden = rank() != 0 or not sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=done, bar_format=layout, dynamic_ncols=True, disable=hidden
        )

    def advance(self, epoch: int) -> None:
        """Count one finished step of ``epoch`` (from 1)."""
        self._done += 1
        self._bar.set_description(f"epoch {epoch}{self._epochs}", refresh=False)
        self._bar.update()

    def report(self, epoch: int, values: str) -> None:
        """Print averages over the last steps. ``epoch`` counts from 1."""
        if not self._bar.disable:
            self._bar.set_postfix_str(values)
            return
        per_step = (time.perf_counter() - self._start_time) / max(self._done - self._start_step, 1)
        left = tqdm.format_interval(per_step * (self._total - self._done))
        print_rank0(
            f"epoch {epoch}{self._epochs}  step {self._done}/{self._total}  {values}  ETA {left}"
        )

    def print(self, text: str) -> None:
        """Print a separate line."""
        if self._bar.disable:
            print_rank0(text)
        else:
            self._bar.write(text)

    def close(self) -> None:
        self._bar.close()
