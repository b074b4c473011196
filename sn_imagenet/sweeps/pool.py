"""The pool of a sweep: one torchrun per cell, as many at a time as there are slots."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.runs import DIVERGED, FAILED, FINISHED, NOT_EVALUATED, RUNNING
from sn_imagenet.sweeps.board import Board, Row
from sn_imagenet.sweeps.progress import Progress, read_progress
from sn_imagenet.sweeps.slots import Slot

WAITING = "waiting"
ELSEWHERE = "running elsewhere"
STOPPED = "stopped"
COMPLETE = (FINISHED, DIVERGED)

LOG_NAME = "log.txt"
_REFUSED = "is in use by process"  # what the lock of a run directory says
POLL_S = 0.3
READ_S = 2.0  # between two looks at the files of a cell
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Task:
    """A cell to be run: its directory and the overrides that ``train.py`` gets.

    ``evaluate``: whether it is complete only when it is evaluated.
    """

    name: str
    run_dir: Path
    overrides: tuple[str, ...]
    evaluate: bool = True

    def state(self) -> tuple[str | None, Progress | None]:
        """What the files say: a state of :mod:`~sn_imagenet.reporting.runs` (None: never
        started), and how far it is.
        """
        progress = read_progress(self.run_dir)
        if progress is None:
            return None, None
        if progress.state == NOT_EVALUATED and not self.evaluate:
            return FINISHED, progress
        return progress.state, progress


class _Cell:
    """A task on its way through the pool."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.state = WAITING
        self.note = ""
        self.progress: Progress | None = None
        self.attempts = 0
        self.slot: Slot | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.log_start = 0
        self.next_look = 0.0

    @property
    def log(self) -> Path:
        return self.task.run_dir / LOG_NAME

    def look(self) -> str | None:
        """Read the files again; returns the state they tell."""
        state, self.progress = self.task.state()
        self.next_look = time.monotonic() + READ_S
        return state


class Pool:
    """Runs every task to its result.

    A finished or diverged cell is skipped; one that another process works on is watched, and taken
    over should that process die; a failed one is started again ``retries`` times, after all the
    others, and goes on from its checkpoint.

    Args:
        command: what starts a cell; its overrides are appended. It runs in a session of its own,
            so that a Ctrl-C reaches it only through the pool.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        slots: Sequence[Slot],
        command: Sequence[str],
        retries: int,
        board: Board,
    ) -> None:
        self._cells = [_Cell(task) for task in tasks]
        self._free = list(slots)
        self._command = list(command)
        self._retries = retries
        self._board = board
        self._queue = list(self._cells)
        self._signals = 0

    def run(self) -> int:
        """Run until nothing is left to do, or a signal asks to stop.

        Returns:
            0 if every cell is finished or diverged; 1 if not; 75 (EX_TEMPFAIL) after a signal:
            the same command continues.

        Raises:
            UserError: a run directory cannot be written.
        """
        with self._stoppable():
            for cell in self._cells:
                if cell.look() in COMPLETE:
                    self._settle(cell, "from before")
            try:
                while self._unsettled() and not self._signals:
                    self._turn()
                    time.sleep(POLL_S)
            finally:
                self._stop_children()
        self._board.end(self._rows())
        if all(cell.state in COMPLETE for cell in self._cells):
            return 0
        return os.EX_TEMPFAIL if self._signals else 1

    def _turn(self) -> None:
        for cell in self._cells:
            if cell.process is not None:
                code = cell.process.poll()
                if code is not None:
                    self._ended(cell, code)
                elif time.monotonic() >= cell.next_look:
                    cell.look()
            elif cell.state == ELSEWHERE and time.monotonic() >= cell.next_look:
                self._look_elsewhere(cell)
        while self._free and self._queue:
            self._start(self._queue.pop(0), self._free.pop(0))
        self._board.show(self._rows())

    def _unsettled(self) -> bool:
        return any(cell.state in (WAITING, RUNNING, ELSEWHERE) for cell in self._cells)

    def _settle(self, cell: _Cell, note: str = "") -> None:
        """The cell's files say that it is complete."""
        state, cell.progress = cell.task.state()
        cell.state, cell.note = str(state), note
        if cell in self._queue:
            self._queue.remove(cell)

    def _start(self, cell: _Cell, slot: Slot) -> None:
        state = cell.look()
        if state in COMPLETE or state == RUNNING:
            self._free.append(slot)
            if state == RUNNING:
                cell.state, cell.note = ELSEWHERE, ""
            else:
                self._settle(cell, "elsewhere")
            return
        command = [*self._command, *cell.task.overrides]
        cell.attempts += 1
        try:
            cell.task.run_dir.mkdir(parents=True, exist_ok=True)
            with open(cell.log, "ab") as log:
                cell.log_start = log.tell()
                log.write(f"# attempt {cell.attempts}: {' '.join(command)}\n".encode())
                log.flush()
                cell.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **slot.environment},
                    start_new_session=True,
                )
        except OSError as error:
            self._free.append(slot)
            raise UserError(
                f"cannot start {cell.task.name}: {cell.task.run_dir}: "
                f"{error.strerror or type(error).__name__}; choose another place with runs_dir="
            ) from error
        cell.slot, cell.state, cell.note = slot, RUNNING, slot.name

    def _ended(self, cell: _Cell, code: int) -> None:
        assert cell.slot is not None
        self._free.append(cell.slot)
        cell.process = cell.slot = None
        state = cell.look()
        if state in COMPLETE:
            self._settle(cell)
        elif state == RUNNING or _REFUSED in self._reason(cell, code):
            # The lock is another process's, or was when ours was refused: it came first.
            cell.attempts -= 1
            cell.state, cell.note = ELSEWHERE, ""
        else:
            why = self._reason(cell, code)
            if cell.attempts <= self._retries and not self._signals:
                cell.state, cell.note = WAITING, f"attempt {cell.attempts} failed: {why}"
                self._queue.append(cell)
            else:
                cell.state, cell.note = FAILED, f"{why} (see {cell.log})"

    def _look_elsewhere(self, cell: _Cell) -> None:
        state = cell.look()
        if state in COMPLETE:
            self._settle(cell, "elsewhere")
        elif state != RUNNING:
            cell.state, cell.note = WAITING, "given up elsewhere"
            self._queue.append(cell)

    def _reason(self, cell: _Cell, code: int) -> str:
        """The error that the cell told last, without torchrun's report around it."""
        with suppress(OSError):
            with open(cell.log, "rb") as log:
                log.seek(cell.log_start)
                text = log.read().decode(errors="replace")
            told = re.findall(r"^error: (.+)$", text, re.MULTILINE)
            raised = re.findall(r"^(?:\w+\.)*(\w+(?:Error|Exception)\b.*)$", text, re.MULTILINE)
            raised = [line for line in raised if not line.startswith("ChildFailedError")]
            if told or raised:
                return str((told or raised)[-1])
        if cell.progress is not None and cell.progress.detail:
            return cell.progress.detail
        return f"ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"

    def _rows(self) -> list[Row]:
        return [Row(c.task.name, c.state, c.progress, c.note) for c in self._cells]

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        def on_signal(number: int, frame: object) -> None:
            self._signals += 1

        before = {number: signal.signal(number, on_signal) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop_children(self) -> None:
        """Pass the end on to the cells and wait: each saves its checkpoint first."""
        running = [cell for cell in self._cells if cell.process is not None]
        if running:
            self._board.say(
                f"stopping: {len(running)} cells save and end; the same command continues them "
                "(once more to kill them)"
            )
        for cell in running:
            assert cell.process is not None
            with suppress(ProcessLookupError):
                cell.process.terminate()
        killed = False
        while any(cell.process is not None and cell.process.poll() is None for cell in running):
            if self._signals > 1 and not killed:
                killed = True
                for cell in running:
                    assert cell.process is not None
                    for pid in family(cell.process.pid):
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S)
        for cell in running:
            cell.process = None
            state = cell.look()
            cell.state, cell.note = (state, "") if state in COMPLETE else (STOPPED, "")
        for cell in self._cells:
            if cell.state == WAITING:
                cell.state = STOPPED if cell.attempts else WAITING


def family(pid: int) -> list[int]:
    """A process and all below it; torchrun puts each of its own into a session of its own."""
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(member for child in below for member in family(int(child)))]


def torchrun(processes: int, script: Sequence[str], rendezvous: Sequence[str] = ()) -> list[str]:
    """The command of a cell: ``script`` with its options under a torchrun of its own.

    ``rendezvous``: torchrun's options where several machines share the cell; without, it finds a
    free port on this one.
    """
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *(rendezvous or ["--standalone"]),
        f"--nproc_per_node={processes}",
        *script,
    ]
