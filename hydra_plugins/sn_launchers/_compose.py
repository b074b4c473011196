"""Both launchers compose and check their runs here. (Hydra's plugin scan skips ``_`` files.)"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from sn_imagenet.command_line import check_data
from sn_imagenet.config import CLASSIFICATION, DataConfig, ExperimentConfig
from sn_imagenet.distributed import Placement
from sn_imagenet.errors import UserError
from sn_imagenet.runs import RunDirectory
from sn_imagenet.runs.start import blame_config
from sn_imagenet.sweeps.planned import PlannedRun, plan_runs


def compose_runs(
    context: HydraContext,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    processes: int,
) -> list[PlannedRun]:
    """Compose the runs of a sweep, and check all of them before the first one starts.

    Raises:
        UserError: a config or a task is invalid, data are missing, the processes do not fit a
            setting, two runs share a run directory, a run directory holds another experiment, or
            this is a torchrun process.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError(
            "this launcher starts the processes of each run itself: use python train.py -m, and "
            "sweep.gpus_per_run= for the processes of a run"
        )
    load = context.config_loader.load_sweep_config
    checked: list[DataConfig] = []

    def check(run: ExperimentConfig) -> None:
        per_pass = run.trainer.replicas_per_pass
        Placement(run.batch.gpus, run.batch.samples_per_gpu, processes, 0, per_pass)
        directory = RunDirectory(Path(run.run_dir))
        with blame_config(directory, run.to_dict()):
            directory.check(run)
        if run.task != CLASSIFICATION:
            from sn_imagenet.tasks import build_task  # takes seconds

            build_task(run).check_options()
        check_data(run, checked)

    return plan_runs(((own, load(config, list(own))) for own in job_overrides), check)


def script_and_options(config: DictConfig) -> list[str]:
    """This script, with its options that locate the configs."""
    options = [str(Path(sys.argv[0]).resolve())]
    for source in config.hydra.runtime.config_sources:
        if source.provider == "command-line":
            options += ["--config-dir", source.path]
    return [*options, "--config-name", config.hydra.job.config_name]


def completed_jobs(
    execute: Callable[[Sequence[Sequence[str]]], int], job_overrides: Sequence[Sequence[str]]
) -> Sequence[JobReturn]:
    """Execute a sweep; the return values that Hydra's sweeper expects.

    Raises:
        SystemExit: with the sweep's exit code if it is not 0; with 2 after an error, which is
            printed. With hydra.sweeper.max_batch_size, later batches wait for the next start.
    """
    setup_globals()
    try:
        code = execute(job_overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = 2
    if code:
        raise SystemExit(code)
    done, none = JobStatus.COMPLETED, OmegaConf.create()
    return [JobReturn(overrides=list(own), cfg=none, status=done) for own in job_overrides]
