"""Hydra's plugin for :mod:`sn_imagenet.sweeps`: composes the runs and passes them to the pool.

Hydra imports this file at every start, so the other imports wait until a sweep starts.
"""

import sys
from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

# The modules that train.py imports during a run, and those that the digits need.
PRELOADED_MODULES = (
    "hydra",
    "sn_imagenet.command_line",
    "sn_imagenet.training",
    "sn_imagenet.reporting.report",
    "sn_imagenet.reporting.figures.files",
    "sklearn.datasets",
    "sklearn.model_selection",
)


class LocalLauncher(Launcher):
    """A pool over the machine's GPUs or CPU slots; see :class:`sn_imagenet.sweeps.pool.Pool`.

    The exit code is 0 if every run has its result, 1 if not, 2 after an error that the user can
    fix, and 75 (EX_TEMPFAIL) after a signal; the same command then resumes.
    """

    config: DictConfig
    context: HydraContext

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config, self.context = config, hydra_context
        # Not at the top: Hydra imports its own plugins once more.
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        # Hydra composes all runs first only to see whether it can, as the launch does with checks:
        # 11 s of CPU time for 81 runs.
        BasicSweeper.validate_batch_is_legal = lambda *args: None  # type: ignore[method-assign]

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from hydra_plugins.sn_launchers._compose import completed_jobs

        return completed_jobs(self._launch, job_overrides)

    def _launch(self, job_overrides: Sequence[Sequence[str]]) -> int:
        from hydra_plugins.sn_launchers._compose import compose_runs, script_and_options
        from sn_imagenet.sweeps.board import Board
        from sn_imagenet.sweeps.plan import plan
        from sn_imagenet.sweeps.planned import sweep_settings
        from sn_imagenet.sweeps.pool import Pool
        from sn_imagenet.sweeps.slots import machine_slots
        from sn_imagenet.sweeps.starters import ForkingStarter, Starter, torchrun

        settings = sweep_settings(self.config)
        runs = compose_runs(self.context, self.config, job_overrides, settings.gpus_per_run)
        slots = machine_slots(settings, runs[0].config.trainer.device)
        if settings.dry_run:
            print("\n".join(plan(runs, len(slots), settings.measured)), flush=True)
            return 0
        script, board = script_and_options(self.config), Board()
        if settings.gpus_per_run > 1:
            starter = Starter(torchrun(settings.gpus_per_run, script))
        elif sys.platform != "linux" or slots[0].environment["CUDA_VISIBLE_DEVICES"]:
            # Unbuffered, as under torchrun, because the log is read while the run is active.
            starter = Starter([sys.executable, "-u", *script])
        else:
            environment = slots[0].environment
            starter = ForkingStarter(script, PRELOADED_MODULES, environment, board.print_line)
        return Pool(runs, slots, starter, settings.retries, board).run()
