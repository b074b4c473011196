"""The pool of a sweep: one process per run, and at most one run per slot at a time."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

from sn_imagenet.errors import UserError
from sn_imagenet.runs import FAILED, RUNNING, RunDirectory, RunInUseError
from sn_imagenet.sweeps.board import Board, RunStatus
from sn_imagenet.sweeps.planned import COMPLETE, PlannedRun
from sn_imagenet.sweeps.slots import Slot
from sn_imagenet.sweeps.starters import Process, Starter

WAITING = "waiting"
ELSEWHERE = "running elsewhere"
STOPPED = "stopped"

POLL_INTERVAL_S = 0.3
READ_INTERVAL_S = 2.0  # between two reads of a run's files
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class _ScheduledRun(RunStatus):
    """A planned run and its state in the pool."""

    def __init__(self, planned: PlannedRun) -> None:
        super().__init__(planned.name, WAITING)
        self.planned = planned
        self.log = RunDirectory(planned.run_dir).log
        self.attempts = 0
        self.slot: Slot | None = None
        self.process: Process | None = None
        self.log_start = 0
        self.next_read = 0.0

    def read_state(self) -> str | None:
        """Read the run's files again and return their state."""
        state, self.progress = self.planned.state()
        self.next_read = time.monotonic() + READ_INTERVAL_S
        return state

    def is_settled(self, note: str = "") -> bool:
        """Whether the run's files say that it is complete, with this ``note`` for the table, or
        that another process trains it."""
        state = self.read_state()
        if state in COMPLETE:
            self.state, self.note = str(state), note
        elif state == RUNNING:
            self.state, self.note = ELSEWHERE, ""
        return state in (RUNNING, *COMPLETE)

    def read_log(self) -> str:
        """What the last attempt has written to the log; empty if it cannot be read."""
        try:
            with open(self.log, "rb") as log:
                log.seek(self.log_start)
                return log.read().decode(errors="replace")
        except OSError:
            return ""


class Pool:
    """Executes the planned runs.

    Finished and diverged runs are skipped. A run that another process trains is watched, and taken
    over if that process dies. A failed run is started again up to ``retries`` times, after all the
    others, and resumes from its checkpoint; not after an error that only the user can mend.

    Args:
        starter: starts the process of a run.
    """

    def __init__(
        self,
        planned: Sequence[PlannedRun],
        slots: Sequence[Slot],
        starter: Starter,
        retries: int,
        board: Board,
    ) -> None:
        self._runs = [_ScheduledRun(run) for run in planned]
        self._free_slots = list(slots)
        self._starter = starter
        self._retries = retries
        self._board = board
        self._queue: list[_ScheduledRun] = []
        self._signals = 0

    def run(self) -> int:
        """Run until nothing is left to do or a signal arrives.

        Returns:
            0 if every run is finished or diverged; 1 if not; 75 (EX_TEMPFAIL) after a signal, and
            the same command resumes.

        Raises:
            UserError: a run directory cannot be written.
        """
        with self._handle_signals():
            self._queue = [run for run in self._runs if not run.is_settled("done earlier")]
            try:
                while self._has_open_runs() and not self._signals:
                    self._poll()
                    time.sleep(POLL_INTERVAL_S)
            finally:
                self._stop_children()
        self._board.end(self._runs)
        if all(run.state in COMPLETE for run in self._runs):
            return 0
        return os.EX_TEMPFAIL if self._signals else 1

    def _poll(self) -> None:
        for run in self._runs:
            if run.process is not None and (code := run.process.poll()) is not None:
                self._handle_exit(run, code)
            elif time.monotonic() < run.next_read:
                continue
            elif run.process is not None:
                run.read_state()
            elif run.state == ELSEWHERE and not run.is_settled("by another process"):
                self._enqueue(run, "the other process ended")
        while self._free_slots and self._queue:
            run = self._queue.pop(0)
            if not run.is_settled("by another process"):
                self._start(run, self._free_slots.pop(0))
        self._board.show(self._runs)

    def _has_open_runs(self) -> bool:
        return any(run.state in (WAITING, RUNNING, ELSEWHERE) for run in self._runs)

    def _enqueue(self, run: _ScheduledRun, note: str) -> None:
        run.state, run.note = WAITING, note
        self._queue.append(run)

    def _start(self, run: _ScheduledRun, slot: Slot) -> None:
        overrides = run.planned.overrides
        command = " ".join([*self._starter.command, *overrides])
        run.attempts += 1
        try:
            run.planned.run_dir.mkdir(parents=True, exist_ok=True)
            with open(run.log, "ab") as log:
                run.log_start = log.tell()
                log.write(f"# attempt {run.attempts}: {command}\n".encode())
                log.flush()
                run.process = self._starter.start(overrides, slot.environment, log)
        except OSError as error:
            raise UserError(
                f"cannot start {run.planned.name}: {run.planned.run_dir}: "
                f"{error.strerror or type(error).__name__}; choose another folder with runs_dir="
            ) from error
        run.slot, run.state, run.note = slot, RUNNING, slot.name

    def _handle_exit(self, run: _ScheduledRun, code: int) -> None:
        assert run.slot is not None
        self._free_slots.append(run.slot)
        run.process = run.slot = None
        log = run.read_log()
        # torchrun exits with 1, and its report has the exit codes of its processes.
        codes = {code, *map(int, re.findall(r"^ *exitcode *: (\d+) ", log, re.MULTILINE))}
        if run.is_settled() or RunInUseError.exit_code in codes:
            if run.state not in COMPLETE:
                # Another process holds the lock, or held it when ours failed to acquire it.
                run.attempts -= 1
                run.state, run.note = ELSEWHERE, ""
            return
        reason = failure_reason(log) or (run.progress and run.progress.detail)
        if not reason:
            reason = f"ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
        may_help = UserError.exit_code not in codes and not self._signals
        if may_help and run.attempts <= self._retries:
            self._enqueue(run, f"attempt {run.attempts} failed: {reason}")
        else:
            run.state, run.note = FAILED, f"{reason} (see {run.log})"

    @contextmanager
    def _handle_signals(self) -> Iterator[None]:
        def on_signal(number: int, frame: object) -> None:
            # A closing terminal sends SIGHUP twice: itself and through its shell.
            if number != signal.SIGHUP or not self._signals:
                self._signals += 1

        previous = {
            number: signal.signal(number, on_signal)
            for number in STOP_SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN  # nohup ignores SIGHUP
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop_children(self) -> None:
        """Stop the running runs and wait: each saves its checkpoint first."""
        running = [run for run in self._runs if run.process is not None]
        if running:
            saving = "1 run is saving its checkpoint"
            if len(running) > 1:
                saving = f"{len(running)} runs are saving their checkpoints"
            self._board.print_line(
                f"Interrupted: {saving}. Run the same command to resume. (Interrupt again to kill.)"
            )
        processes = [run.process for run in running if run.process is not None]
        for process in processes:
            process.terminate()
        while alive := [process for process in processes if process.poll() is None]:
            trees = [process_tree(process.pid) for process in alive] if self._signals > 1 else []
            for pid in chain.from_iterable(trees):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_INTERVAL_S)
        for run in running:
            run.process = None
            state = run.read_state()
            run.state, run.note = (state, "") if state in COMPLETE else (STOPPED, "")


def failure_reason(log: str) -> str:
    """The last error in a run's log, without torchrun's report around it; empty without any."""
    errors = re.findall(r"^error: (.+)$", log, re.MULTILINE)
    raised = re.findall(r"^(?:\w+\.)*(\w+(?:Error|Exception)\b.*)$", log, re.MULTILINE)
    raised = [line for line in raised if not line.startswith("ChildFailedError")]
    return str([*raised, *errors][-1]) if errors or raised else ""


def process_tree(pid: int) -> list[int]:
    """A process and all its descendants; torchrun's workers are not in its process group."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(each for child in children for each in process_tree(int(child)))]
