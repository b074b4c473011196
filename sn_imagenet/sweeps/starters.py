"""Starts the runs of a sweep, as separate programs or forked from one preloaded process."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

from sn_imagenet.errors import UserError
from sn_imagenet.sweeps import fork_server
from sn_imagenet.sweeps.slots import Slot

_WAIT_S = 0.2  # longest wait for an answer, before the pool polls its other runs
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Process(Protocol):
    """A started run; subprocess.Popen has this interface."""

    @property
    def pid(self) -> int:
        """The process id."""

    def poll(self) -> int | None:
        """The exit code, or minus the signal that killed it; None while it runs."""

    def terminate(self) -> None:
        """Send SIGTERM."""


class Starter(Protocol):
    """Starts runs, each in a new session, so that a Ctrl-C reaches it only through the pool.

    ``command``: the command that a user would type to start a run, without its overrides.
    """

    command: list[str]

    def ready(self) -> bool:
        """Whether :meth:`start` can be called now; if not, its preparation is in progress."""

    def start(
        self, overrides: Sequence[str], environment: Mapping[str, str], log: IO[bytes]
    ) -> Process:
        """Start a run.

        Args:
            environment: added to the environment of this process.
            log: receives standard output and error.

        Raises:
            OSError: no further process can be created.
        """


class SubprocessStarter:
    """Starts each run as a separate program."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)

    def ready(self) -> bool:
        """Always."""
        return True

    def start(
        self, overrides: Sequence[str], environment: Mapping[str, str], log: IO[bytes]
    ) -> Process:
        """See :class:`Starter`."""
        return subprocess.Popen(
            [*self.command, *overrides],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )


class _AdoptedProcess:
    """A process that another one forked and that this process adopted."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


class _ForkServer:
    """A running :mod:`~sn_imagenet.sweeps.fork_server` and the socket to it."""

    def __init__(
        self, folder: Path, modules: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.socket, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-m", fork_server.__name__, os.getcwd(), *modules],
                cwd=folder,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self.awaits_answer = True  # it sends READY by itself when it has started
        self.was_ready = False

    def end(self) -> str:
        """Wait for its end; return its exit code or signal, and its last line of errors."""
        self.socket.close()
        code = self.process.wait()
        outcome = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        with self._errors:
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").splitlines()
        return ": ".join([outcome, *lines[-1:]])


class ForkingStarter:
    """Forks each run from one :mod:`~sn_imagenet.sweeps.fork_server`.

    The server is restarted when it died or when a file that it imported has changed, so that a run
    always executes the current code. Use it in a ``with`` block. Linux only, for runs without GPUs.

    Args:
        script: the script of the runs, with its options.
        modules: names of the modules that the server imports.
        environment: the environment variables common to all slots.
        print_line: prints a line for the user.
    """

    def __init__(
        self,
        script: Sequence[str],
        modules: Sequence[str],
        environment: Mapping[str, str],
        print_line: Callable[[str], None],
    ) -> None:
        self.command = [sys.executable, "-u", *script]
        self._script = list(script)
        self._modules = list(modules)
        self._environment = environment
        self._print_line = print_line
        self._server: _ForkServer | None = None

    def __enter__(self) -> ForkingStarter:
        _adopt_orphans(True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._server is not None:
            self._server.process.terminate()
            self._server.end()
        _adopt_orphans(False)

    def ready(self) -> bool:
        """See :class:`Starter`.

        Raises:
            UserError: the fork server cannot start, or ended before it was ready.
        """
        if self._server is None:
            folder = Path(self._script[0]).parent
            try:
                self._server = _ForkServer(folder, self._modules, self._environment)
            except OSError as error:
                raise UserError(f"cannot start the fork server: {error.strerror}") from error
        server = self._server
        with suppress(ConnectionError):
            if not server.awaits_answer:
                server.socket.send(fork_server.CHECK)
                server.awaits_answer = True
            if not select.select([server.socket], [], [], _WAIT_S)[0]:
                return False
            answer = server.socket.recv(32)
            server.awaits_answer = False
            if answer == fork_server.READY:
                server.was_ready = True
                return True
            if answer == fork_server.STALE:
                self._print_line("the code has changed: later runs use the new code")
                server.end()
                self._server = None
                return False
        self._restart_or_raise(server)
        return False

    def start(
        self, overrides: Sequence[str], environment: Mapping[str, str], log: IO[bytes]
    ) -> Process:
        """See :class:`Starter`."""
        request = {"arguments": [*self._script, *overrides], "environment": dict(environment)}
        message = json.dumps(request).encode()
        while True:
            server = self._server
            assert server is not None
            with suppress(ConnectionError):
                socket.send_fds(server.socket, [message], [log.fileno()])
                answer = int(server.socket.recv(32) or 0)
                if answer < 0:
                    raise OSError(-answer, os.strerror(-answer))
                if answer > 0:
                    return _AdoptedProcess(answer)
            # If the run has started nevertheless, its lock makes the second start fail.
            self._restart_or_raise(server)
            while not self.ready():
                pass

    def _restart_or_raise(self, server: _ForkServer) -> None:
        reason = server.end()
        self._server = None
        if not server.was_ready:
            raise UserError(f"the fork server of this sweep ended before its first run: {reason}")
        self._print_line(f"the fork server of this sweep ended ({reason}): restarting it")


def _adopt_orphans(enabled: bool) -> None:
    """Set whether this process adopts descendants whose parent ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(enabled), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


@contextmanager
def make_starter(
    script: Sequence[str],
    processes: int,
    slots: Sequence[Slot],
    modules: Sequence[str],
    print_line: Callable[[str], None],
) -> Iterator[Starter]:
    """The starter for runs of ``processes`` processes each on ``slots``.

    Runs of one process without a GPU are forked. Others are separate programs, because a process
    that has used CUDA cannot be forked.
    """
    if processes > 1:
        yield SubprocessStarter(torchrun(processes, script))
    elif sys.platform != "linux" or not all(slot.is_cpu for slot in slots):
        # Unbuffered, as under torchrun, because the log is read while the run is active.
        yield SubprocessStarter([sys.executable, "-u", *script])
    else:
        with ForkingStarter(script, modules, slots[0].environment, print_line) as starter:
            yield starter


def torchrun(processes: int, script: Sequence[str], rendezvous: Sequence[str] = ()) -> list[str]:
    """The command of a run: ``script`` with its options under its own torchrun.

    ``rendezvous``: torchrun's options for a run on several machines. By default it uses a free port
    of this machine.
    """
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *(rendezvous or ["--standalone"]),
        f"--nproc_per_node={processes}",
        *script,
    ]
