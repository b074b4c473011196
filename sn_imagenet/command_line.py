"""What a command says of its own line: one sentence, exit code 2, before torch is imported."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sn_imagenet.config import from_hydra
from sn_imagenet.data.sources import check_files
from sn_imagenet.errors import UserError, nearest
from sn_imagenet.runs import RunDirectory

if TYPE_CHECKING:
    from sn_imagenet.distributed import Session

RAISE = "HYDRA_FULL_ERROR"  # has Hydra raise its errors, which it would print and end with 1


class CommandLine:
    """A program that Hydra runs, and its session, which imports torch and so begins late."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    @cached_property
    def session(self) -> Session:
        """The program's session; it ends with the program."""
        from sn_imagenet.distributed import session

        return self._stack.enter_context(session())

    @contextmanager
    def checked(self) -> Iterator[None]:
        """What all processes find wrong before the session begins ends the program.

        Raises:
            SystemExit: 2, after one line.
        """
        try:
            yield
        except (HydraException, OmegaConfBaseException, UserError) as error:
            if os.environ.get("RANK", "0") == "0":
                print(f"error: {describe(error)}", file=sys.stderr, flush=True)
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                _ = self.session  # its end waits for the other processes
            raise SystemExit(2) from error

    def check(self, composed: DictConfig) -> None:
        """Validate the config of a single cell, and look for its data; a sweep's are told one by
        one, and of several processes those that lack their data may not be all.

        Raises:
            SystemExit: 2, after one line.
        """
        if HydraConfig.get().mode == RunMode.RUN:
            with self.checked():
                config = from_hydra(composed)
                done = RunDirectory(Path(config.run_dir)).result.exists()  # needs no data any more
                if not done and int(os.environ.get("WORLD_SIZE", "1")) == 1:
                    check_files(config.data)


@contextmanager
def command_line() -> Iterator[CommandLine]:
    """Around ``hydra.main``: what it cannot compose is told in one line.

    Raises:
        SystemExit: 2, where the command line is wrong; otherwise as :func:`replicas.session`.
    """
    with ExitStack() as stack:
        line = CommandLine(stack)
        if RAISE in os.environ:  # by a user who wants the traceback
            yield line
            return
        os.environ[RAISE] = "1"
        try:
            with line.checked():
                yield line
        finally:
            del os.environ[RAISE]


def describe(error: Exception) -> str:
    """An error of the composition in one line, with the nearest name that there is."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return _unknown_choice(group, choice, error.options)
    cause = error.__cause__
    override = re.search(r"To append to your config use \+(\S+)", str(error))
    parent = getattr(cause, "parent_node", None)
    if override and isinstance(parent, DictConfig):
        return _unknown_setting(override[1], str(getattr(cause, "full_key", "")), parent)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(cause, OmegaConfBaseException):
        lines[1:] = str(cause).splitlines()[:1]
    return ": ".join(lines[:2])


def _unknown_choice(group: str, choice: str, options: Iterable[str]) -> str:
    known = sorted(options)
    found = nearest(choice, known)
    guess = f"did you mean {group}={found}? " if found else ""
    other = (
        "; for another setting give batch.gpus= batch.samples_per_gpu=" if group == "batch" else ""
    )
    return f"{group}={choice}: there is no such choice; {guess}expected one of " + (
        ", ".join(known) + other
    )


def _unknown_setting(override: str, failing: str, parent: DictConfig) -> str:
    """``failing``: the beginning of ``override`` that is unknown, in the section ``parent``."""
    names = failing.split(".")
    known = [str(name) for name in parent if name != "hydra"]
    found = nearest(names[-1], known)
    guess = f"expected one of {', '.join(known)}"
    if found:
        guess = f"did you mean {'.'.join([*names[:-1], found])}{override[len(failing) :]}?"
    return f"{override}: there is no such setting; {guess} (--cfg job shows all)"
