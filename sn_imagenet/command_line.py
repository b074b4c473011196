"""The frame of all programs: one-line errors; for train.py and evaluate.py, Hydra and the session.

Hydra and torch take long to import, so functions import them. Until then Ctrl-C prints nothing, and
an error in the command line is reported before torch is imported.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from sn_imagenet.environment import check_environment, rank, world_size
from sn_imagenet.errors import ConfigError, UserError, closest_name
from sn_imagenet.output import disable_interrupt_traceback, fail_safe_output

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sn_imagenet.config import ExperimentConfig
    from sn_imagenet.session import Session

RAISE_ERRORS = "HYDRA_FULL_ERROR"  # makes Hydra raise errors instead of printing and exiting with 1
Options = TypeVar("Options")


def hydra_program(
    config_path: str, config_name: str, read: Callable[[DictConfig], Options]
) -> Callable[[Callable[[Options, Session], None]], Callable[[], None]]:
    """Turn a script's function of options and session into its program; see :class:`.Session`.

    Args:
        config_path: the folder of the configs, relative to the script.
        read: the options in the composed config; called before torch is imported, under multirun
            within the run, which reports its errors.

    Raises:
        SystemExit: 2 if the command line is wrong, otherwise as :func:`.session.session`.
    """

    def decorate(function: Callable[[Options, Session], None]) -> Callable[[], None]:
        def main() -> None:
            disable_interrupt_traceback()
            with exit_on_user_error():
                check_environment()
            import hydra
            from hydra.core.hydra_config import HydraConfig
            from hydra.types import RunMode

            with _command_line() as line:

                @hydra.main(version_base="1.3", config_path=config_path, config_name=config_name)
                @wraps(function)  # Hydra looks for the configs beside its file
                def run(composed: DictConfig) -> None:
                    options = None
                    if HydraConfig.get().mode == RunMode.RUN:
                        with line.exit_on_error():
                            options = read(composed)
                    with line.session.run():
                        if options is None:
                            from sn_imagenet.distributed import raise_on_all_ranks

                            with raise_on_all_ranks():
                                options = read(composed)
                        function(options, line.session)

                run()

        return main

    return decorate


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Exit on a UserError.

    Raises:
        SystemExit: 2, after printing one line.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run the ``main`` of a script that is not a Hydra program.

    Raises:
        SystemExit: with its exit code; 2 after an error that the user can fix.
    """
    disable_interrupt_traceback()
    with fail_safe_output(), exit_on_user_error():
        check_environment()
        sys.exit(main())


def read_experiment(composed: DictConfig) -> ExperimentConfig:
    """Validate the config of ``train.py``, and check that its data exist.

    Data are checked only for a single process: of several, some may have them and others not.

    Raises:
        UserError: a value is invalid, or the data are missing.
    """
    from sn_imagenet.config import from_hydra
    from sn_imagenet.data.sources import check_files
    from sn_imagenet.runs import RunDirectory

    config = from_hydra(composed)
    has_result = RunDirectory(Path(config.run_dir)).result.exists()  # needs no data
    own_data = config.task["name"] != "classification"  # a task may read none of data=
    if not has_result and not own_data and world_size() == 1:
        check_files(config.data)
    return config


def read_evaluation(composed: DictConfig) -> dict[str, Any]:
    """The options of ``evaluate.py``.

    Raises:
        ConfigError: none names the runs.
    """
    from omegaconf import OmegaConf

    options: Any = OmegaConf.to_container(composed)
    if not options["run"]:
        raise ConfigError("run= is missing: give a run directory or a quoted glob")
    return dict(options)


class _CommandLine:
    """A Hydra program and its session. The session is created late because it imports torch."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    @cached_property
    def session(self) -> Session:
        """The session, which lasts until the program ends."""
        from sn_imagenet.session import session

        return self._stack.enter_context(session())

    @contextmanager
    def exit_on_error(self) -> Iterator[None]:
        """Exit on an error that all processes find before the session begins.

        Raises:
            SystemExit: 2, after printing one line.
        """
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        try:
            yield
        except (HydraException, OmegaConfBaseException, UserError) as error:
            message = f"error: {describe_error(error)}"
            if rank() == 0:
                print(message, file=sys.stderr, flush=True)
            if world_size() > 1:  # the session waits for the other processes on exit
                self.session.unreported = message if rank() > 0 else ""
            raise SystemExit(2) from error


@contextmanager
def _command_line() -> Iterator[_CommandLine]:
    """Wrap ``hydra.main``: errors in composing the config are reported in one line."""
    with ExitStack() as stack:
        line = _CommandLine(stack)
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
    from hydra.errors import MissingConfigException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

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
    others = ", or any GxN (GPUs x samples per GPU), such as 4x6" if group == "batch" else ""
    expected = ", ".join(known) + others
    return f"{group}={choice}: unknown choice; {guess}expected one of {expected}"


def _unknown_key(override: str, failing: str, parent: DictConfig) -> str:
    """``failing`` is the unknown first part of ``override``; ``parent`` is its config section."""
    names = failing.split(".")
    known = [str(name) for name in parent if name != "hydra"]
    match = closest_name(names[-1], known)
    if not known:
        return f"{override}: unknown config key; to add it, write +{override}"
    guess = f"expected one of {', '.join(known)}"
    if match:
        guess = f"did you mean {'.'.join([*names[:-1], match])}{override[len(failing) :]}?"
    return f"{override}: unknown config key; {guess} (--cfg job shows all)"
