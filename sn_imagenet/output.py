"""Standard output and error that cannot fail: who listens has no say in whether a run goes on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


class _Lasting:
    """A stream whose words go nowhere once its reader is gone, its terminal closed, its disk full.

    Everything but writing is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        # The descriptor itself, for libraries that write there and what is still in the buffer.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def quiet_interrupt() -> None:
    """Have Ctrl-C end the program at once, as SIGTERM does, and not with the traceback of whatever
    it is importing; until something listens that has work to save. One that is ignored stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within, nothing that is said raises, also where a stream is closed from the start.

    To be entered before any file is opened: it would get the closed stream's descriptor, and the
    warnings of libraries with it.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Lasting(stream or _nowhere())) for stream in before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _nowhere() -> TextIO:
    return open(os.devnull, "w")  # until the program ends
