"""How a cell of a sweep is started: as a program of its own, or forked from a warm one."""

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

_WAIT_S = 0.2  # for an answer, before the pool goes on with the rest of its turn
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Process(Protocol):
    """What the pool does with a cell that it has started; subprocess.Popen is one."""

    @property
    def pid(self) -> int:
        """The number of its process."""

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that killed it; None while it runs."""

    def terminate(self) -> None:
        """Send SIGTERM."""


class Starter(Protocol):
    """Starts cells; each in a session of its own, so that a Ctrl-C reaches it only through the
    pool.

    ``command``: what a user would type to start one, without its overrides.
    """

    command: list[str]

    def ready(self) -> bool:
        """Whether :meth:`start` can be called now; if not, what it takes is under way."""

    def start(
        self, overrides: Sequence[str], environment: Mapping[str, str], log: IO[bytes]
    ) -> Process:
        """Start a cell.

        Args:
            environment: added to that of this process.
            log: its standard output and error.

        Raises:
            OSError: there can be no further process.
        """


class SubprocessStarter:
    """Starts each cell as a program of its own."""

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


class _Orphan:
    """A process that was forked by another and adopted by this one."""

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


class _Server:
    """A running :mod:`warm <sn_imagenet.sweeps.fork_server>` program and the socket to it."""

    def __init__(
        self, folder: Path, modules: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.socket, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the program
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
        self.asked = True  # it tells by itself when it is ready
        self.was_ready = False

    def end(self) -> str:
        """End it, if it has not ended; returns how it did, and what it said last."""
        self.socket.close()
        code = self.process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        with self._errors:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").splitlines()
        return ": ".join([how, *said[-1:]])


class ForkingStarter:
    """Forks each cell from one :mod:`warm <sn_imagenet.sweeps.fork_server>` program, which is started anew
    when a file that it imported has changed, or it died: a cell runs the code that there is when it
    starts.

    To be used in a ``with`` block. Linux only, and for cells that use no GPU.

    Args:
        script: what the cells run, with its options.
        modules: what it imports, by their names.
        environment: that of every slot.
        say: tells the user a line.
    """

    def __init__(
        self,
        script: Sequence[str],
        modules: Sequence[str],
        environment: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self.command = [sys.executable, "-u", *script]
        self._script = list(script)
        self._modules = list(modules)
        self._environment = environment
        self._say = say
        self._server: _Server | None = None

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
            UserError: the warm program cannot start, or ended before it was ready.
        """
        if self._server is None:
            folder = Path(self._script[0]).parent
            try:
                self._server = _Server(folder, self._modules, self._environment)
            except OSError as error:
                raise UserError(f"cannot start a program: {error.strerror}") from error
        server = self._server
        with suppress(ConnectionError):
            if not server.asked:
                server.socket.send(fork_server.CHECK)
                server.asked = True
            if not select.select([server.socket], [], [], _WAIT_S)[0]:
                return False
            answer = server.socket.recv(32)
            server.asked = False
            if answer == fork_server.READY:
                server.was_ready = True
                return True
            if answer == fork_server.STALE:
                self._say("the code has changed: the cells that follow run it as it is now")
                server.end()
                self._server = None
                return False
        self._died(server)
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
                    return _Orphan(answer)
            # Should the cell have begun all the same, its lock refuses the one that follows.
            self._died(server)
            while not self.ready():
                pass

    def _died(self, server: _Server) -> None:
        how = server.end()
        self._server = None
        if not server.was_ready:
            raise UserError(f"the program that cells are forked from ended before the first: {how}")
        self._say(f"the program that cells are forked from ended ({how}): started anew")


def _adopt_orphans(yes: bool) -> None:
    """Whether processes below this one become its children when their parent ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


@contextmanager
def starter(
    script: Sequence[str],
    processes: int,
    slots: Sequence[Slot],
    modules: Sequence[str],
    say: Callable[[str], None],
) -> Iterator[Starter]:
    """What starts the cells of ``processes`` processes each on ``slots``.

    Single processes without a GPU are forked, others are programs of their own: a process that has
    used CUDA cannot be forked.
    """
    if processes > 1:
        yield SubprocessStarter(torchrun(processes, script))
    elif sys.platform != "linux" or not all(slot.is_cpu for slot in slots):
        # Unbuffered, as torchrun starts its processes: a log is read while its cell runs.
        yield SubprocessStarter([sys.executable, "-u", *script])
    else:
        with ForkingStarter(script, modules, slots[0].environment, say) as forking:
            yield forking


def torchrun(processes: int, script: Sequence[str], rendezvous: Sequence[str] = ()) -> list[str]:
    """The command of a run: ``script`` with its options under a torchrun of its own.

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
