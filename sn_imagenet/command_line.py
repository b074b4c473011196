"""The frame of all programs: one-line errors; for train.py and evaluate.py, Hydra and the session.

Hydra and torch take long to import, so functions import them. Until then Ctrl-C prints nothing, and
an error in the command line is reported before torch is imported.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from sn_imagenet.environment import check_environment, rank, world_size
from sn_imagenet.errors import ConfigError, UserError, machine_error
from sn_imagenet.output import disable_interrupt_traceback, fail_safe_output
from sn_imagenet.overrides import describe_error, list_index, read_arguments, refuse_dashes

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sn_imagenet.config import DataConfig, ExperimentConfig
    from sn_imagenet.session import Session

_FILES = (
    *("data.train", "data.val", "data.train_annotations", "data.val_annotations"),
    *("task.style", "task.features"),
)
RAISE_ERRORS = "HYDRA_FULL_ERROR"  # makes Hydra raise errors instead of printing and exiting with 1
Options = TypeVar("Options")


def hydra_program(
    folder: str, config_name: str, read: Callable[[DictConfig], Options]
) -> Callable[[Callable[[Options, Session], None]], Callable[[], None]]:
    """Turn a script's function of options and session into its program; see :class:`.Session`.

    Args:
        folder: the config's, in ``configs/``; empty for this itself.
        read: the options in the composed config; called before torch is imported, under multirun
            within the run, which reports its errors.

    Raises:
        SystemExit: 2 if the command line is wrong, otherwise as :func:`.session.session`.
    """

    def decorate(function: Callable[[Options, Session], None]) -> Callable[[], None]:
        def main() -> None:
            disable_interrupt_traceback()
            with exit_on_user_error():
                if find_spec("hydra") is None:
                    raise UserError(
                        "only the layers are installed; to train, install with the extra train: "
                        "pip install '.[train]'"
                    )
                check_environment()
                sys.argv[1:] = read_arguments(sys.argv[1:])
                refuse_dashes(sys.argv[1:])
            import hydra
            from hydra.core.hydra_config import HydraConfig
            from hydra.types import RunMode

            from sn_imagenet.config import CONFIGS

            with exit_on_user_error(), ExitStack() as sessions, ExitStack() as stack:
                line = _CommandLine(sessions)
                if RAISE_ERRORS not in os.environ:  # else a user wants the traceback
                    os.environ[RAISE_ERRORS] = "1"
                    stack.callback(os.environ.pop, RAISE_ERRORS)
                    stack.enter_context(line.exit_on_error())

                @hydra.main(str(CONFIGS / folder), config_name, version_base="1.3")
                @wraps(function)
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
    """Exit on a UserError or an error of the machine.

    Raises:
        SystemExit: 2, or 1 for the machine, after printing one line.
    """
    try:
        yield
    except (UserError, OSError, RuntimeError) as error:
        line = str(error) if isinstance(error, UserError) else machine_error(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr, flush=True)
        raise SystemExit(2 if isinstance(error, UserError) else 1) from error


def script_parser(description: str | None) -> ArgumentParser:
    """A parser of a script's arguments whose help begins with ``description`` as it is."""
    return ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run the ``main`` of a script that is not a Hydra program.

    Raises:
        SystemExit: with its exit code; 2 after an error that the user can fix.
    """
    disable_interrupt_traceback()
    with fail_safe_output(), exit_on_user_error():
        check_environment()
        sys.argv[1:] = read_arguments(sys.argv[1:])
        sys.exit(main())


def read_experiment(composed: DictConfig) -> ExperimentConfig:
    """Validate the config of ``train.py``, and check that its data exist.

    Data are checked only for a single process: of several, some may have them and others not.

    Raises:
        UserError: a value is invalid, or the data are missing.
    """
    from sn_imagenet.config import from_hydra

    config = from_hydra(composed)
    if world_size() == 1:
        check_data(config)
    return config


def check_data(config: ExperimentConfig, checked: list[DataConfig] | None = None) -> None:
    """Check that the data of a run exist, without torch; of other tasks, the files that it names.

    Args:
        checked: the data of earlier calls, which are not checked again; these are added.

    Raises:
        UserError: they are missing.
    """
    from sn_imagenet.data.errors import DataError
    from sn_imagenet.data.sources import check_files
    from sn_imagenet.runs import RunDirectory, flatten_config

    if RunDirectory(Path(config.run_dir)).result.exists():
        return  # needs no data
    if config.task["name"] == "classification":
        if config.data not in (checked or ()):
            check_files(config.data)
        if checked is not None:
            checked.append(config.data)
        return
    values = flatten_config(config.to_dict())  # a task may read none of data=
    for key in (*(["data.root"] if config.data.source == "coco" else []), *_FILES):
        if values.get(key) and not Path(values[key]).expanduser().exists():
            raise DataError(f"{key}={values[key]}: no such file or folder")


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
        except (HydraException, OmegaConfBaseException, UserError, OSError, ValueError) as error:
            from_hydra = isinstance(error, HydraException)  # some of these are OSErrors too
            if isinstance(error, OSError) and not (from_hydra or error.filename):
                raise
            if type(error) is ValueError and not list_index(error):
                raise
            message = f"error: {describe_error(error)}"
            if rank() == 0:
                print(message, file=sys.stderr, flush=True)
            if world_size() > 1:  # the session waits for the other processes on exit
                self.session.unreported = message if rank() > 0 else ""
            raise SystemExit(2) from error
