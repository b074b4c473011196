"""Standard output and error that never raise: a closed or broken output does not end a run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any, TextIO, cast


class _FailSafeStream:
    """A stream that discards its output after the first write error, such as a closed pipe or
    terminal or a full disk.

    All other attributes are those of the wrapped stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._discard_output()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._discard_output()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _discard_output(self) -> None:
        # Redirect the descriptor itself: libraries write to it, and the buffer may hold text.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)


def disable_interrupt_traceback() -> None:
    """Let Ctrl-C end the program without a traceback, as SIGTERM does, until a handler that saves
    a checkpoint is installed. A signal that is ignored at start stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def fail_safe_output() -> Iterator[None]:
    """Writing to stdout or stderr never raises in this context, even if they are closed at start.

    Enter it before opening any file. Otherwise the file would get the descriptor of a closed
    stream, and the warnings of libraries with it.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        cast(TextIO, _FailSafeStream(stream or _null_stream())) for stream in streams
    )
    for stream in streams:
        if isinstance(stream, TextIOWrapper):  # for names that are not in its encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams


def _null_stream() -> TextIO:
    return open(os.devnull, "w")  # stays open until the program ends
