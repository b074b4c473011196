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
        show_bar = sys.stderr.isatty() and rank() == 0
        layout = "{desc}{percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}, ETA {remaining}{postfix}]"
        self._bar = (
            tqdm(total=total, initial=done, bar_format=layout, dynamic_ncols=True)
            if show_bar
            else None
        )

    def advance(self, epoch: int) -> None:
        """Count one finished step of ``epoch`` (from 1)."""
        self._done += 1
        if self._bar is not None:
            self._bar.set_description(f"epoch {epoch}{self._epochs}", refresh=False)
            self._bar.update()

    def report(self, epoch: int, values: str) -> None:
        """Print averages over the last steps. ``epoch`` counts from 1."""
        if self._bar is not None:
            self._bar.set_postfix_str(values)
            return
        per_step = (time.perf_counter() - self._start_time) / max(self._done - self._start_step, 1)
        left = tqdm.format_interval(per_step * (self._total - self._done))
        print_rank0(
            f"epoch {epoch}{self._epochs}  step {self._done}/{self._total}  {values}  ETA {left}"
        )

    def print(self, text: str) -> None:
        """Print a separate line."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print_rank0(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
