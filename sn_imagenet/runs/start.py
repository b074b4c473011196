"""What a start of a run finds in its directory, and the lock under which a process works there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.runs.checkpoint import load_last
from sn_imagenet.runs.directory import RunDirectory
from sn_imagenet.runs.files import RunError, file_error, write_text
from sn_imagenet.runs.lock import acquire, release
from sn_imagenet.runs.record import FAILED, NOT_EVALUATED, Run, run_from_result

FRESH = "fresh"
RESUME = "resume"  # from a checkpoint
DONE = "done"


@dataclass(frozen=True)
class Start:
    """What a start of a run finds: ``kind`` is :data:`FRESH`, :data:`RESUME` or :data:`DONE`.

    ``run``: the complete run, if it is done. ``evaluations``: those of ``evaluate.py`` since an
    earlier start, which a run that resumes keeps.
    """

    kind: str
    run: Run | None = None
    evaluations: tuple[dict[str, Any], ...] = ()


def open_run(directory: RunDirectory, config: ExperimentConfig) -> Start:
    """What the directory holds of this experiment. The result of a failed start counts as none.

    Raises:
        UserError: the directory holds another experiment (the message lists the differences; see
            :meth:`.RunDirectory.check`), or a file in it cannot be read.
    """
    directory.check(config)
    kind = RESUME if directory.last.exists() or directory.previous.exists() else FRESH
    if kind == RESUME and not directory.config.exists():
        state, _ = load_last(directory, _require_config)
        if state is not None:
            directory.require_same_experiment(state["config"], config)
    result = directory.read_result()
    if result is None or result.get("status") == FAILED:
        return Start(kind)
    run = run_from_result(result, directory.path)
    if run.state == NOT_EVALUATED and config.evaluate:
        return Start(kind, evaluations=run.evaluations if kind == RESUME else ())
    return Start(DONE, run)


def _require_config(path: Path, state: dict[str, Any]) -> None:
    if not isinstance(state.get("config"), dict):
        raise RunError(f"{path} does not record its experiment")


@contextmanager
def claimed(directory: RunDirectory, config: ExperimentConfig) -> Iterator[Start]:
    """Create the directory for this experiment and lock it for this process, until the block ends.

    Yields what the directory holds under the lock: another process may have used it until then.

    Raises:
        RunInUseError: another process holds the lock.
        UserError: as :func:`open_run`, or the directory cannot be written.
    """
    try:
        directory.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise file_error("write", directory.path, error) from error
    acquire(directory.lock)
    try:
        start = open_run(directory, config)
        if not directory.config.exists():
            write_text(directory.config, OmegaConf.to_yaml(OmegaConf.create(config.to_dict())))
        yield start
    finally:
        release(directory.lock)
