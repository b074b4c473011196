"""What both launchers do before they start a cell. (Hydra's plugin scan skips this file's name.)"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from sn_imagenet.distributed import Placement
from sn_imagenet.errors import UserError
from sn_imagenet.runs import RunDirectory
from sn_imagenet.sweeps.planned import PlannedRun, plan_runs


def compose_runs(
    context: HydraContext,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    processes: int,
) -> list[PlannedRun]:
    """The runs of a sweep, each checked for what it would refuse itself, before the first starts.

    Raises:
        UserError: a config is wrong, processes do not fit a setting, two cells share a run
            directory, or one holds another experiment; or this program runs under torchrun.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError(
            "this launcher starts the processes of each cell itself: use python train.py -m, and "
            "sweep.gpus_per_run= for the processes of a cell"
        )
    load = context.config_loader.load_sweep_config
    runs = plan_runs([(own, load(config, list(own))) for own in job_overrides])
    for run in runs:
        batch, per_pass = run.config.batch, run.config.trainer.replicas_per_pass
        Placement(batch.gpus, batch.samples_per_gpu, processes, 0, per_pass)
        RunDirectory(run.run_dir).check(run.config)
    return runs


def script_and_options(config: DictConfig) -> list[str]:
    """This program, and what it was told about where its configs are."""
    options = [str(Path(sys.argv[0]).resolve())]
    for source in config.hydra.runtime.config_sources:
        if source.provider == "command-line":
            options += ["--config-dir", source.path]
    return [*options, "--config-name", config.hydra.job.config_name]


def completed(overrides: Sequence[str]) -> JobReturn:
    """What Hydra's sweeper wants of a cell that needs no more work."""
    return JobReturn(overrides=list(overrides), cfg=OmegaConf.create(), status=JobStatus.COMPLETED)
