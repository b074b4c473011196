"""The status table of a sweep: redrawn in place on a terminal, printed as lines elsewhere."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from sn_imagenet.reporting.render import plain
from sn_imagenet.runs import RUNNING, Progress


@dataclass
class RunStatus:
    """A table row: a run's name, its state, and a note on where it runs or what failed."""

    name: str
    state: str
    progress: Progress | None = None
    note: str = ""

    def columns(self) -> tuple[str, ...]:
        """The texts of the table's columns."""
        p = self.progress or Progress(self.state)
        return (
            plain(self.name),
            self.state,
            p.done,
            "-" if p.value is None else p.score.format(p.value),
            "-" if p.images_per_s is None else f"{p.images_per_s:.0f} {p.score.speed_unit}",
            "-" if p.eta_s is None else duration(p.eta_s),
            plain((self.note or p.detail).split("\n")[0]),
        )


def duration(seconds: float) -> str:
    """``2d 3h``, ``1:02:03`` or ``2:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24}h"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def table(rows: Sequence[RunStatus], width: int | None = None) -> list[str]:
    """The lines of the table and its summary, cut to ``width`` characters."""
    texts = [("run", "state", "epoch", "score", "speed", "ETA", ""), *(r.columns() for r in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = []
    for text in texts:
        left = map(str.ljust, text[:2], widths)
        right = map(str.rjust, text[2:-1], widths[2:])
        lines.append("  ".join([*left, *right, text[-1]]))
    return [line.rstrip()[:width] for line in [*lines, summary(rows)]]


def summary(rows: Sequence[RunStatus]) -> str:
    """A line such as ``27 runs: 5 finished, 8 running, 14 waiting``."""
    counts = Counter(row.state for row in rows)
    return f"{run_count(len(rows))}: " + ", ".join(f"{n} {state}" for state, n in counts.items())


def run_count(count: int) -> str:
    """``1 run`` or ``27 runs``."""
    return f"{count} run{'' if count == 1 else 's'}"


class Board:
    """Shows the rows of a sweep.

    Args:
        stream: the output. A terminal redraws the table in place; any other stream gets a line for
            each change of a run's state or epoch.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._lines_drawn = 0
        self._printed: dict[str, tuple[str, ...]] = {}

    def show(self, rows: Sequence[RunStatus]) -> None:
        """Show the current rows."""
        if self._terminal:
            self._redraw(rows)
        else:
            self._print_changes(rows)

    def end(self, rows: Sequence[RunStatus]) -> None:
        """Show the whole table one last time."""
        if self._terminal:
            self._redraw(rows, whole=True)
        else:
            self._write(table(rows))

    def print_line(self, line: str) -> None:
        """Print a separate line; the table continues below it."""
        self._lines_drawn = 0
        self._write([line])

    def _redraw(self, rows: Sequence[RunStatus], whole: bool = False) -> None:
        size = shutil.get_terminal_size()
        shown = list(rows)
        height = size.lines - 4  # minus header, summary, prompt and one spare line
        if len(shown) > height and not whole:
            # Prefer the active runs, then fill up with others; keep the order of the table.
            first = sorted(range(len(shown)), key=lambda i: shown[i].state != RUNNING)[:height]
            shown = [shown[i] for i in sorted(first)]
        lines = [*table(shown, size.columns - 1)[:-1], summary(rows)]
        up = f"\x1b[{self._lines_drawn}A" if self._lines_drawn else ""
        self._stream.write(up + "".join(f"\x1b[2K{line}\n" for line in lines) + "\x1b[J")
        self._stream.flush()
        self._lines_drawn = len(lines)

    def _print_changes(self, rows: Sequence[RunStatus]) -> None:
        for row in rows:
            epoch = str(row.progress.epoch or "") if row.progress and row.state == RUNNING else ""
            now = (row.state, epoch, row.note)
            if self._printed.get(row.name, ("waiting", "", "")) == now:
                continue
            self._printed[row.name] = now
            name, state, done, *others, eta, note = row.columns()
            words = [f"{name}: {state}", note]
            if done != "-":
                words += [done if "steps" in done else f"epoch {done}", *others]
                words += [f"ETA {eta}" if eta != "-" else ""]
            self._write(["  ".join(word for word in words if word not in ("", "-"))])

    def _write(self, lines: Sequence[str]) -> None:
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._stream.flush()
