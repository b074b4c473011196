"""A program that has imported what a cell imports, and forks a cell for each request.

``python -m sn_imagenet.sweeps.fork_server FOLDER MODULE...``, as
:class:`~sn_imagenet.sweeps.starters.ForkingStarter` starts it: in the folder of the cells' script, so that
it imports what they would; standard input is the socket of the requests.

multiprocessing's forkserver will not do: its processes end without atexit, the signals of the
sweep's terminal reach it, and a cell's loader would fork its workers from the same server.
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

# What is asked, beside a request for a cell, and answered, beside the number of its process.
CHECK, READY, STALE = b"check", b"ready", b"stale"
_REQUEST_BYTES = 2**17

Versions = dict[str, tuple[int, int]]


def main() -> None:
    """Answer until the socket is closed; in a process forked for it, be the cell."""
    folder, *modules = sys.argv[1:]
    os.chdir(folder)
    pool = socket.socket(fileno=0)
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # the collector of a cell then writes to none of it, which would copy it
    imported = _versions(getattr(m, "__file__", None) or "" for m in [*sys.modules.values()])
    pool.send(READY)
    request, log = _serve(pool, imported)
    if request:
        _become(request, pool, log)
        runpy.run_path(sys.argv[0], run_name="__main__")


def _versions(files: Iterable[str]) -> Versions:
    """Time of change and size of each file that there is."""
    found = {}
    for file in files:
        with suppress(OSError):  # some modules of torch only look as if they had a file
            status = os.stat(file)
            found[file] = status.st_mtime_ns, status.st_size
    return found


def _serve(pool: socket.socket, imported: Versions) -> tuple[dict[str, Any], int]:
    """Returns in each cell, with its request and its log; at last here, with neither."""
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
    """Fork a process whose parent ends: the sweep's program adopts it, being the subreaper.

    Returns:
        0 in that process; here its number once it is adopted, or minus the errno of a failure.
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
    told = os.read(read, 32)
    os.close(read)
    if parent < 0:
        return parent
    os.waitpid(parent, 0)
    return int(told)


def _fork() -> int:
    """os.fork(), with minus the errno in place of its error."""
    try:
        return os.fork()
    except OSError as error:
        return -(error.errno or errno.EAGAIN)


def _become(request: dict[str, Any], pool: socket.socket, log: int) -> None:
    """Make this process what ``python SCRIPT`` would be."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, pool.detach())
    for output in (1, 2):
        os.dup2(log, output)
    os.close(nothing)
    os.close(log)
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]


if __name__ == "__main__":
    main()
