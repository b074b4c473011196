"""Checks of the command line: one-line errors with exit code 2, before torch is imported."""

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
from sn_imagenet.errors import UserError, closest_name
from sn_imagenet.runs import RunDirectory

if TYPE_CHECKING:
    from sn_imagenet.distributed import Session

RAISE_ERRORS = "HYDRA_FULL_ERROR"  # makes Hydra raise errors instead of printing and exiting with 1


class CommandLine:
    """A Hydra program and its session. The session is created late because it imports torch."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    @cached_property
    def session(self) -> Session:
        """The session, which lasts until the program ends."""
        from sn_imagenet.distributed import session

        return self._stack.enter_context(session())

    @contextmanager
    def exit_on_error(self) -> Iterator[None]:
        """Exit on an error that all processes find before the session begins.

        Raises:
            SystemExit: 2, after printing one line.
        """
        try:
            yield
        except (HydraException, OmegaConfBaseException, UserError) as error:
            if os.environ.get("RANK", "0") == "0":
                print(f"error: {describe_error(error)}", file=sys.stderr, flush=True)
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                _ = self.session  # waits for the other processes on exit
            raise SystemExit(2) from error

    def check_config(self, composed: DictConfig) -> None:
        """Validate the config of a single run, and check that its data exist.

        A sweep reports errors run by run. Data are checked only for a single process, because some
        of several processes may have the data and others not.

        Raises:
            SystemExit: 2, after printing one line.
        """
        if HydraConfig.get().mode == RunMode.RUN:
            with self.exit_on_error():
                config = from_hydra(composed)
                has_result = RunDirectory(Path(config.run_dir)).result.exists()  # needs no data
                if not has_result and int(os.environ.get("WORLD_SIZE", "1")) == 1:
                    check_files(config.data)


@contextmanager
def command_line() -> Iterator[CommandLine]:
    """Wrap ``hydra.main``: errors in composing the config are reported in one line.

    Raises:
        SystemExit: 2 if the command line is wrong; otherwise as :func:`.distributed.session`.
    """
    with ExitStack() as stack:
        line = CommandLine(stack)
        if RAISE_ERRORS in os.environ:  # set by a user who wants the traceback
            yield line
            return
        os.environ[RAISE_ERRORS] = "1"
        try:
            with line.exit_on_error():
                yield line
        finally:
            del os.environ[RAISE_ERRORS]


def describe_error(error: Exception) -> str:
    """One line for an error in composing the config, with the most similar valid name."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return _unknown_choice(group, choice, error.options)
    cause = error.__cause__
    override = re.search(r"To append to your config use \+(\S+)", str(error))
    parent = getattr(cause, "parent_node", None)
    if override and isinstance(parent, DictConfig):
        return _unknown_key(override[1], str(getattr(cause, "full_key", "")), parent)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(cause, OmegaConfBaseException):
        lines[1:] = str(cause).splitlines()[:1]
    return ": ".join(lines[:2])


def _unknown_choice(group: str, choice: str, options: Iterable[str]) -> str:
    known = sorted(options)
    match = closest_name(choice, known)
    guess = f"did you mean {group}={match}? " if match else ""
    hint = (
        "; for another setting use batch.gpus= batch.samples_per_gpu=" if group == "batch" else ""
    )
    return f"{group}={choice}: unknown choice; {guess}expected one of " + (", ".join(known) + hint)


def _unknown_key(override: str, failing: str, parent: DictConfig) -> str:
    """``failing`` is the unknown first part of ``override``; ``parent`` is its config section."""
    names = failing.split(".")
    known = [str(name) for name in parent if name != "hydra"]
    match = closest_name(names[-1], known)
    guess = f"expected one of {', '.join(known)}"
    if match:
        guess = f"did you mean {'.'.join([*names[:-1], match])}{override[len(failing) :]}?"
    return f"{override}: unknown config key; {guess} (--cfg job shows all)"
