"""The checkpoint from which training resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sn_imagenet.distributed import broadcast_object, raise_on_all_ranks, rank
from sn_imagenet.runs import RunDirectory, RunError, checkpoint, decompress_rows
from sn_imagenet.tasks import Prepared, require_same_data
from sn_imagenet.training.recorder import METERS
from sn_imagenet.training.stepper import Stepper

# Entries of a checkpoint besides those of the stepper and the recorder.
_ENTRIES = (
    *("config", "data_fingerprint", "epoch", "step", "step_in_epoch", "last_finite_loss"),
    *("world_sizes", "git_revisions", "warnings"),
)


def load_newest_checkpoint(
    directory: RunDirectory, prepared: Prepared, stepper: Stepper, warn: Callable[[str], None]
) -> dict[str, Any] | None:
    """Rank 0's newest usable checkpoint, on every rank; None if there is none. Collective.

    Args:
        stepper: loads its part of each checkpoint as a test; its state afterwards is undefined.
        warn: called for each newer checkpoint that is not usable.

    Raises:
        RunError: no existing checkpoint is usable, or it is of a different experiment.
    """

    def require_usable(path: Path, state: dict[str, Any]) -> None:
        try:
            for key in _ENTRIES:
                state[key]
            for key in (*METERS, *stepper.task.sums):
                float(state["meters"][key])
            decompress_rows(state["metrics"].numpy().tobytes())
            stepper.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
            raise RunError(
                f"{path} is not a checkpoint of this training: {reason.splitlines()[0]}"
            ) from error
        directory.require_own(path, state["config"], prepared.config.to_dict())
        if not stepper.weights_are_finite():
            raise RunError(f"{path} holds weights that are not finite")

    state: dict[str, Any] | None = None
    with raise_on_all_ranks():
        if rank() == 0:
            state, warnings = checkpoint.load_last(directory, require_usable)
            for warning in warnings:
                warn(f"{warning}; resuming from the previous checkpoint")
            if state is not None:
                require_same_data(directory.path, state["data_fingerprint"], prepared.data)
    newest: dict[str, Any] | None = broadcast_object(state)
    return newest
