"""The pool of a sweep: one program per run, as many at a time as there are slots."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sn_imagenet.errors import EXIT_CODES, UserError
from sn_imagenet.runs import FAILED, RUNNING, Progress, RunDirectory, RunInUseError
from sn_imagenet.sweeps.board import Board, RunStatus
from sn_imagenet.sweeps.planned import COMPLETE, PlannedRun
from sn_imagenet.sweeps.slots import Slot
from sn_imagenet.sweeps.starters import Process, Starter

WAITING = "waiting"
ELSEWHERE = "running elsewhere"
STOPPED = "stopped"

POLL_S = 0.3
READ_S = 2.0  # between two looks at the files of a cell
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class _PooledRun:
    """A planned run on its way through the pool."""

    def __init__(self, planned: PlannedRun) -> None:
        self.planned = planned
        self.state = WAITING
        self.note = ""
        self.progress: Progress | None = None
        self.attempts = 0
        self.slot: Slot | None = None
        self.process: Process | None = None
        self.log_start = 0
        self.exit_codes: tempfile.TemporaryDirectory[str] | None = None  # of its ranks
        self.next_look = 0.0

    @property
    def log(self) -> Path:
        return RunDirectory(self.planned.run_dir).log

    def look(self) -> str | None:
        """Read the files again; returns the state they tell."""
        state, self.progress = self.planned.state()
        self.next_look = time.monotonic() + READ_S
        return state

    def was_refused(self) -> bool:
        """Whether the last attempt ended since another process works in the run directory."""
        assert self.exit_codes is not None
        told = [file.read_text() for file in Path(self.exit_codes.name).iterdir()]
        return str(RunInUseError.exit_code) in told


class Pool:
    """Brings every planned run to its result.

    A finished or diverged cell is skipped; one that another process works on is watched, and taken
    over should that process die; a failed one is started again ``retries`` times, after all the
    others, and goes on from its checkpoint.

    Args:
        starter: what starts a cell.
    """

    def __init__(
        self,
        planned: Sequence[PlannedRun],
        slots: Sequence[Slot],
        starter: Starter,
        retries: int,
        board: Board,
    ) -> None:
        self._runs = [_PooledRun(one) for one in planned]
        self._free = list(slots)
        self._starter = starter
        self._retries = retries
        self._board = board
        self._queue = list(self._runs)
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
            for run in self._runs:
                if run.look() in COMPLETE:
                    self._settle(run, "from before")
            try:
                while self._unsettled() and not self._signals:
                    self._turn()
                    time.sleep(POLL_S)
            finally:
                self._stop_children()
        self._board.end(self._rows())
        if all(run.state in COMPLETE for run in self._runs):
            return 0
        return os.EX_TEMPFAIL if self._signals else 1

    def _turn(self) -> None:
        for run in self._runs:
            if run.process is not None:
                code = run.process.poll()
                if code is not None:
                    self._ended(run, code)
                elif time.monotonic() >= run.next_look:
                    run.look()
            elif run.state == ELSEWHERE and time.monotonic() >= run.next_look:
                self._look_elsewhere(run)
        while self._free and self._queue and self._starter.ready():
            self._start(self._queue.pop(0), self._free.pop(0))
        self._board.show(self._rows())

    def _unsettled(self) -> bool:
        return any(run.state in (WAITING, RUNNING, ELSEWHERE) for run in self._runs)

    def _settle(self, run: _PooledRun, note: str = "") -> None:
        """The cell's files say that it is complete."""
        state, run.progress = run.planned.state()
        run.state, run.note = str(state), note
        if run in self._queue:
            self._queue.remove(run)

    def _start(self, run: _PooledRun, slot: Slot) -> None:
        state = run.look()
        if state in COMPLETE or state == RUNNING:
            self._free.append(slot)
            if state == RUNNING:
                run.state, run.note = ELSEWHERE, ""
            else:
                self._settle(run, "elsewhere")
            return
        overrides = run.planned.overrides
        command = " ".join([*self._starter.command, *overrides])
        run.attempts += 1
        try:
            run.planned.run_dir.mkdir(parents=True, exist_ok=True)
            with open(run.log, "ab") as log:
                run.log_start = log.tell()
                log.write(f"# attempt {run.attempts}: {command}\n".encode())
                log.flush()
                run.exit_codes = tempfile.TemporaryDirectory(prefix="sn_imagenet_")
                told = {EXIT_CODES: run.exit_codes.name}
                run.process = self._starter.start(overrides, {**slot.environment, **told}, log)
        except OSError as error:
            self._free.append(slot)
            raise UserError(
                f"cannot start {run.planned.name}: {run.planned.run_dir}: "
                f"{error.strerror or type(error).__name__}; choose another place with runs_dir="
            ) from error
        run.slot, run.state, run.note = slot, RUNNING, slot.name

    def _ended(self, run: _PooledRun, code: int) -> None:
        assert run.slot is not None
        self._free.append(run.slot)
        run.process = run.slot = None
        state = run.look()
        if state in COMPLETE:
            self._settle(run)
        elif state == RUNNING or run.was_refused():
            # The lock is another process's, or was when ours was refused: it came first.
            run.attempts -= 1
            run.state, run.note = ELSEWHERE, ""
        else:
            why = self._reason(run, code)
            if run.attempts <= self._retries and not self._signals:
                run.state, run.note = WAITING, f"attempt {run.attempts} failed: {why}"
                self._queue.append(run)
            else:
                run.state, run.note = FAILED, f"{why} (see {run.log})"

    def _look_elsewhere(self, run: _PooledRun) -> None:
        state = run.look()
        if state in COMPLETE:
            self._settle(run, "elsewhere")
        elif state != RUNNING:
            run.state, run.note = WAITING, "given up elsewhere"
            self._queue.append(run)

    def _reason(self, run: _PooledRun, code: int) -> str:
        """The error that the cell told last, without torchrun's report around it."""
        with suppress(OSError):
            with open(run.log, "rb") as log:
                log.seek(run.log_start)
                text = log.read().decode(errors="replace")
            told = re.findall(r"^error: (.+)$", text, re.MULTILINE)
            raised = re.findall(r"^(?:\w+\.)*(\w+(?:Error|Exception)\b.*)$", text, re.MULTILINE)
            raised = [line for line in raised if not line.startswith("ChildFailedError")]
            if told or raised:
                return str((told or raised)[-1])
        if run.progress is not None and run.progress.detail:
            return run.progress.detail
        return f"ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"

    def _rows(self) -> list[RunStatus]:
        return [RunStatus(r.planned.name, r.state, r.progress, r.note) for r in self._runs]

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        def on_signal(number: int, frame: object) -> None:
            # A terminal that closes tells it twice, itself and through its shell.
            if number != signal.SIGHUP or not self._signals:
                self._signals += 1

        before = {
            number: signal.signal(number, on_signal)
            for number in STOPPING
            if signal.getsignal(number) is not signal.SIG_IGN  # as nohup starts it
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop_children(self) -> None:
        """Pass the end on to the cells and wait: each saves its checkpoint first."""
        running = [run for run in self._runs if run.process is not None]
        if running:
            self._board.say(
                f"stopping: {len(running)} cells save and end; the same command continues them "
                "(once more to kill them)"
            )
        for run in running:
            assert run.process is not None
            with suppress(ProcessLookupError):
                run.process.terminate()
        killed = False
        while any(run.process is not None and run.process.poll() is None for run in running):
            if self._signals > 1 and not killed:
                killed = True
                for run in running:
                    assert run.process is not None
                    for pid in process_tree(run.process.pid):
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S)
        for run in running:
            run.process = None
            state = run.look()
            run.state, run.note = (state, "") if state in COMPLETE else (STOPPED, "")
        for run in self._runs:
            if run.state == WAITING:
                run.state = STOPPED if run.attempts else WAITING


def process_tree(pid: int) -> list[int]:
    """A process and all below it; torchrun puts each of its own into a session of its own."""
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(member for child in below for member in process_tree(int(child)))]
