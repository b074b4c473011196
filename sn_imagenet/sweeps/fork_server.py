"""A process that has imported the modules of a run, and forks a run for each request.

:class:`~sn_imagenet.sweeps.starters.ForkingStarter` starts it as
``python -m sn_imagenet.sweeps.fork_server FOLDER MODULE...`` in the folder of the script, so that
imports resolve as in the script. Standard input is the socket for requests.

multiprocessing's forkserver is unsuitable: its processes end without atexit handlers, the signals
of the terminal reach it, and a run's data loader would fork its workers from the same server.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import runpy
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

# Messages besides a request for a run and the answer to it, which is a process id.
CHECK, READY, STALE = b"check", b"ready", b"stale"
_REQUEST_BYTES = 2**17

Versions = dict[str, tuple[int, int]]


def main() -> None:
    """Serve requests until the socket is closed; in a forked process, execute the run."""
    folder, *modules = sys.argv[1:]
    os.chdir(folder)
    pool = socket.socket(fileno=0)
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # or a run's garbage collector would write to these objects and so copy them
    imported = _versions(getattr(m, "__file__", None) or "" for m in [*sys.modules.values()])
    pool.send(READY)
    request, log = _serve(pool, imported)
    if request:
        _set_up_run(request, pool, log)
        runpy.run_path(sys.argv[0], run_name="__main__")


def _versions(files: Iterable[str]) -> Versions:
    """Modification time and size of each file that exists."""
    versions = {}
    for file in files:
        with suppress(OSError):  # some torch modules name a file that does not exist
            status = os.stat(file)
            versions[file] = status.st_mtime_ns, status.st_size
    return versions


def _serve(pool: socket.socket, imported: Versions) -> tuple[dict[str, Any], int]:
    """Serve requests. Returns request and log in each forked run, and ({}, -1) here at the end."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(pool, _REQUEST_BYTES, 1)
        if message == CHECK and imported == _versions(imported):
            pool.send(READY)
        elif message == CHECK:
            pool.send(STALE)
        elif message:
            (log,) = descriptors
            answer = _fork_orphan()
            if answer == 0:
                return json.loads(message), log
            os.close(log)
            pool.send(str(answer).encode())
        else:
            return {}, -1


def _fork_orphan() -> int:
    """Fork a process whose parent ends, so that the sweep's process adopts it as the subreaper.

    Returns:
        0 in that process; here its pid once it is adopted, or minus the errno of a failure.
    """
    read, write = os.pipe()
    parent = _fork()
    if parent == 0:
        child = _fork()
        if child != 0:
            os.write(write, str(child).encode())
            os._exit(0)
        os.close(read)
        os.close(write)
        return 0
    os.close(write)
    answer = os.read(read, 32)
    os.close(read)
    if parent < 0:
        return parent
    os.waitpid(parent, 0)
    return int(answer)


def _fork() -> int:
    """os.fork(), but returns minus the errno instead of raising OSError."""
    try:
        return os.fork()
    except OSError as error:
        return -(error.errno or errno.EAGAIN)


def _set_up_run(request: dict[str, Any], pool: socket.socket, log: int) -> None:
    """Set up this process as ``python SCRIPT`` would be."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, pool.detach())
    for output in (1, 2):
        os.dup2(log, output)
    os.close(null)
    os.close(log)
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]


if __name__ == "__main__":
    main()
