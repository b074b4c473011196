"""Checks that a sweep can write its runs before Hydra tries, which would end in a traceback.

(Hydra's plugin scan skips ``_`` files.)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


def _nothing(sweeper: BasicSweeper, batch: Any) -> None:
    pass


class RunsFolder(Callback):
    """A Hydra callback for the start of every sweep, set in the config's ``hydra.callbacks``."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Create Hydra's own folder among the runs, or exit with a one-line error and code 2."""
        if config.hydra.runtime.choices["hydra/launcher"] != "basic":
            # Hydra composes all runs only to see whether it can. So do our launchers, with checks.
            BasicSweeper.validate_batch_is_legal = _nothing  # type: ignore[method-assign, assignment]
        folder = Path(config.hydra.sweep.dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            print(
                f"error: cannot write {folder}: {error.strerror or type(error).__name__}; free "
                "some space or allow writing there, or choose another folder with runs_dir=",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(2) from error
