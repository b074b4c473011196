"""Hydra's plugin for :mod:`sn_imagenet.sweeps`: composes the cells and hands them to the pool.

Hydra imports this file at every start, so what it needs is imported when a sweep starts.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class LocalLauncherConf:
    """What there is to choose is in the config's ``sweep`` section."""

    _target_: str = "hydra_plugins.sn_local_launcher.local_launcher.LocalLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="local", node=LocalLauncherConf, provider="sn_imagenet"
)


class LocalLauncher(Launcher):
    """A pool over the machine's GPUs or CPU slots; see :class:`sn_imagenet.sweeps.pool.Pool`.

    The program ends with 0 if every cell has its result, 1 if not, 2 after an error that the user
    can mend, 75 (EX_TEMPFAIL) if a signal stopped it: the same command continues.
    """

    config: DictConfig
    context: HydraContext

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config, self.context = config, hydra_context

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from sn_imagenet.config import UserError

        setup_globals()
        try:
            code = self._launch(job_overrides)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            code = 2
        if code:
            # With hydra.sweeper.max_batch_size, later batches are left for the next start.
            raise SystemExit(code)
        return [_completed(overrides) for overrides in job_overrides]

    def _launch(self, job_overrides: Sequence[Sequence[str]]) -> int:
        from sn_imagenet.config import UserError
        from sn_imagenet.sweeps.board import Board
        from sn_imagenet.sweeps.cells import make_cells
        from sn_imagenet.sweeps.plan import plan
        from sn_imagenet.sweeps.pool import Pool, torchrun
        from sn_imagenet.sweeps.settings import sweep_settings
        from sn_imagenet.sweeps.slots import machine_slots

        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise UserError(
                "hydra/launcher=local starts a torchrun for each cell itself: use python train.py "
                "-m, and sweep.gpus_per_run= for the processes of a cell"
            )
        settings = sweep_settings(self.config)
        composed = [
            (overrides, self.context.config_loader.load_sweep_config(self.config, list(overrides)))
            for overrides in job_overrides
        ]
        cells = make_cells(composed)
        for cell in cells:
            _check(cell, settings.gpus_per_run)
        slots = machine_slots(settings, cells[0].config.trainer.device)
        if settings.dry_run:
            print("\n".join(plan(cells, len(slots))), flush=True)
            return 0
        command = torchrun(Path(sys.argv[0]), settings.gpus_per_run, self._options())
        return Pool([c.task for c in cells], slots, command, settings.retries, Board()).run()

    def _options(self) -> list[str]:
        """What this program was told about where its configs are."""
        options = []
        job, runtime = self.config.hydra.job, self.config.hydra.runtime
        for source in runtime.config_sources:
            if source.provider == "command-line":
                options += ["--config-dir", source.path]
        return [*options, "--config-name", job.config_name]


def _check(cell: Any, processes: int) -> None:
    """Whether a cell could start: what it would say itself, but before the others have run.

    Raises:
        UserError: its processes do not fit its setting, or its directory holds another experiment.
    """
    from sn_imagenet.replicas import Placement
    from sn_imagenet.runs import RunDirectory

    config = cell.config
    per_pass = config.trainer.replicas_per_pass
    Placement(config.batch.gpus, config.batch.samples_per_gpu, processes, 0, per_pass)
    RunDirectory(cell.task.run_dir).check(config)


def _completed(overrides: Sequence[str]) -> JobReturn:
    return JobReturn(overrides=list(overrides), cfg=OmegaConf.create(), status=JobStatus.COMPLETED)
