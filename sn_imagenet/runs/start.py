"""What a start of a run finds in its directory, and the lock under which a process works there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.errors import UserError
from sn_imagenet.runs.checkpoint import load, load_final, load_last
from sn_imagenet.runs.directory import RunDirectory, config_differences
from sn_imagenet.runs.files import (
    RunError,
    advice,
    clear_killed_writes,
    disk_errors,
    printable,
    write_text,
)
from sn_imagenet.runs.lock import locked
from sn_imagenet.runs.metrics import decompress_rows, last_rows, repair, require_own_rows
from sn_imagenet.runs.record import FAILED, FINISHED, NOT_EVALUATED, Run, run_from_result


@dataclass(frozen=True)
class Start:
    """What a start of a run finds. ``resumes``: from a checkpoint. ``run``: the complete run, if it
    is done. ``damage``: why a finished run resumes, to write its weights again; empty if it does
    not. ``evaluations``: those of ``evaluate.py`` since an earlier start, which a run that resumes
    keeps.
    """

    resumes: bool = False
    run: Run | None = None
    damage: str = ""
    evaluations: tuple[dict[str, Any], ...] = ()


@contextmanager
def blame_config(directory: RunDirectory, given: dict[str, Any] | None = None) -> Iterator[None]:
    """Within it, an error that two files contradict each other is one about ``config.yaml`` if that
    is the one to mend: copied from another run, or cut off where it is still a config.

    Args:
        given: the config of the command, if it has one.

    Raises:
        RunError: the config in ``config.yaml`` differs from ``given``, the result and all
            checkpoints, at least two of them.
    """
    try:
        yield
    except UserError:
        if not directory.config.exists():
            raise
        configs = [] if given is None else [given]
        with suppress(RunError, LookupError):
            configs.append((directory.read_result() or {})["config"])
        for path in (directory.final, directory.last, directory.previous):
            with suppress(RunError, LookupError):
                configs.append(load(path)["config"])
        written, own = directory.read_config(), [each for each in configs if isinstance(each, dict)]
        differences = [config_differences(written, config) for config in own]
        if len(differences) > 1 and all(differences):
            raise RunError(
                f"{directory.config} is of another run, or cut off "
                f"({'; '.join(differences[0][:3])}); {advice(directory.config)}"
            ) from None
        raise


def open_run(directory: RunDirectory, config: ExperimentConfig) -> Start:
    """What the directory holds of this experiment. The result of a failed start counts as none.

    Raises:
        UserError: the directory holds another experiment (the message lists the differences; see
            :meth:`.RunDirectory.check`), or a file in it cannot be read.
    """
    with blame_config(directory, config.to_dict()):
        directory.check(config)
    resumes = directory.last.exists() or directory.previous.exists()
    if resumes and not directory.config.exists():
        state, _ = load_last(directory)
        if state is not None:
            directory.require_same_experiment(state.get("config", {}), config)
    result = directory.read_result()
    if result is None or result.get("status") == FAILED:
        return Start(resumes)
    run = run_from_result(result, directory.path)
    if run.state == NOT_EVALUATED and config.evaluate:
        return Start(resumes, evaluations=run.evaluations if resumes else ())
    if run.state in (FINISHED, NOT_EVALUATED):
        damage = _damage_of_weights(directory, config, result.get("training"))
        if damage and resumes:
            own = tuple(each for each in run.evaluations if each.get("by") != "training")
            return Start(resumes, damage=damage, evaluations=own)
        if damage and directory.final.exists():
            raise RunError(
                f"{directory.path} is finished, but {damage}. It has no other checkpoint: restore "
                f"{directory.final}, or remove {directory.path} to train it again"
            )
    return Start(resumes, run)


def _damage_of_weights(
    directory: RunDirectory, config: ExperimentConfig, training: dict[str, Any] | None
) -> str:
    """What is wrong with ``final.pt``; empty if nothing. ``training``: that of the result."""
    if not directory.final.exists():
        return f"{directory.final} is missing"
    try:
        require_same_training(directory, load_final(directory, config.to_dict()), training)
    except RunError as error:
        return str(error).partition("; ")[0]
    return ""


def require_same_training(
    directory: RunDirectory, final: dict[str, Any], training: dict[str, Any] | None
) -> None:
    """Require that ``final``, the content of ``final.pt``, and ``training``, the entry of the
    result, are of one training and not of two with the same config.

    Raises:
        RunError: they are of two.
    """
    if printable(final.get("training", training)) != training:
        raise RunError(
            f"{directory.final} is of another training than {directory.result}; "
            f"{advice(directory.final)}"
        )


def repair_finished(directory: RunDirectory, config: ExperimentConfig) -> list[str]:
    """Write again what a finished run has lost of config and metrics; returns a line for each."""
    lines = []
    if not directory.config.exists():
        _write_config(directory, config)
        lines.append(f"{directory.config} was missing; it is written again")
    with suppress(RunError, LookupError, TypeError, ValueError, AttributeError, OSError):
        state, _ = load_last(directory)
        if state is not None:
            directory.require_own(directory.last, state["config"], config.to_dict())
            rows = decompress_rows(state["metrics"].numpy().tobytes())
            if damage := repair(directory.metrics, rows):
                lines.append(f"{directory.metrics} {damage}; rebuilt from the last checkpoint")
    try:
        require_own_rows(directory, config.to_dict())
        last_rows(directory.metrics)
    except RunError as error:
        problem = str(error).partition("; ")[0]
        lines.append(f"{problem}; no checkpoint is left to rebuild it from: restore or remove it")
    return lines


def _write_config(directory: RunDirectory, config: ExperimentConfig) -> None:
    write_text(directory.config, OmegaConf.to_yaml(OmegaConf.create(config.to_dict())))


@contextmanager
def claimed(directory: RunDirectory, config: ExperimentConfig) -> Iterator[Start]:
    """Create the directory for this experiment and lock it for this process, until the block ends.

    Yields what the directory holds under the lock: another process may have used it until then.

    Raises:
        RunInUseError: another process holds the lock.
        UserError: as :func:`open_run`, or the directory cannot be written.
    """
    with disk_errors(directory.path):
        directory.path.mkdir(parents=True, exist_ok=True)
    with locked(directory.lock):
        clear_killed_writes(directory.path)
        start = open_run(directory, config)
        if not directory.config.exists():
            _write_config(directory, config)
        yield start
