"""Starts the runs of a sweep, as separate programs or forked from a process that has imported."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir, suppress
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import IO, TypeAlias, Union

PACKAGE = Path(__file__).parents[1]
Process: TypeAlias = Union[subprocess.Popen[bytes], "_ForkedRun"]


class Starter:
    """Starts each run as a separate program, in a new session, so that a Ctrl-C reaches it only
    through the pool.

    Args:
        command: the command that a user would type to start a run, without its overrides.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)

    def start(
        self, overrides: Sequence[str], environment: Mapping[str, str], log: IO[bytes]
    ) -> Process:
        """Start a run.

        Args:
            environment: added to the environment of this process.
            log: a file that receives standard output and error.

        Raises:
            OSError: no further process can be created.
        """
        return subprocess.Popen(
            [*self.command, *overrides],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )


class ForkingStarter(Starter):
    """Forks each run from multiprocessing's fork server, which imports the modules only once. Once
    a file of this package has changed, runs are separate programs, which import it again.

    Only for runs without GPUs, because a process that has used CUDA cannot be forked.

    Args:
        script: the script of the runs, with its options.
        modules: names of the modules that the server imports.
        environment: variables that the modules read when they are imported, the same for all slots.
        print_line: prints a line for the user.
    """

    def __init__(
        self,
        script: Sequence[str],
        modules: Sequence[str],
        environment: Mapping[str, str],
        print_line: Callable[[str], None],
    ) -> None:
        super().__init__([sys.executable, "-u", *script])
        self._script = list(script)
        self._print_line = print_line
        self._versions: dict[Path, int] | None = _code_versions()
        os.environ.update(environment)
        forkserver.set_forkserver_preload(["sn_imagenet.sweeps.detached", *modules])

    def start(
        self, overrides: Sequence[str], environment: Mapping[str, str], log: IO[bytes]
    ) -> Process:
        """See :meth:`Starter.start`; the first start waits for the imports."""
        if self._versions not in (None, _code_versions()):
            self._versions = None
            self._print_line("the code has changed: later runs use the new code")
        if self._versions is not None:
            run = _ForkedRun([*self._script, *overrides], environment, log.name)
            try:
                with chdir(Path(self._script[0]).parent):  # its imports resolve as in the script
                    forkserver.ensure_running()
                run.start()
                return run
            except (EOFError, ConnectionError):
                pass  # the server died; the next start restarts it
        return super().start(overrides, environment, log)


class _ForkedRun(ForkServerProcess):
    """A run as ``python -u SCRIPT ...`` would be, in a process that the fork server forks."""

    pid: int

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], log: str | bytes
    ) -> None:
        super().__init__()
        self._arguments, self._environment = list(arguments), dict(environment)
        self._log = log

    def poll(self) -> int | None:
        return self.exitcode

    def run(self) -> None:
        os.setsid()
        with open(os.devnull, "rb") as null, open(self._log, "ab") as log:
            for opened, standard in ((null, 0), (log, 1), (log, 2)):
                os.dup2(opened.fileno(), standard)
        # The server's own are None if the sweep was started with closed ones.
        sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))  # noqa: SIM115
        os.environ.update(self._environment)
        # Loader workers are started as in a separate program, not by the fork server.
        multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
        sys.argv = self._arguments
        sys.path[0] = str(Path(self._arguments[0]).parent)
        try:
            runpy.run_path(self._arguments[0], run_name="__main__")
        finally:
            atexit._run_exitfuncs()  # multiprocessing calls only its own at the end


def _code_versions() -> dict[Path, int]:
    """The modification time of each file of this package's code."""
    versions = {}
    for file in PACKAGE.rglob("*"):
        if file.suffix in (".py", ".cpp", ".h"):
            with suppress(OSError):  # an editor's lock file, or a file that it replaces now
                versions[file] = file.stat().st_mtime_ns
    return versions


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
