"""Whether a sweep can write where its runs go, asked before Hydra does, which ends in a traceback.

(Hydra's plugin scan skips this file's name.)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class RunsFolder(Callback):
    """Called by Hydra at the start of every sweep; the config's ``hydra.callbacks`` names it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make Hydra's own folder below that of the runs, or end with one line and code 2."""
        folder = Path(config.hydra.sweep.dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            print(
                f"error: cannot write {folder}: {error.strerror or type(error).__name__}; free "
                "some space or allow writing there, or choose another place with runs_dir=",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(2) from error
