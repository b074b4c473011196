"""``hydra/launcher=submitit_slurm``: each run is a Slurm job that starts torchrun. The job is
requeued after a preemption or its time limit, until the run has its result.

hydra-submitit-launcher submits the jobs. It would execute a run inside its own single process per
node; this launcher starts torchrun there instead.

Hydra imports this file at every start, so the other imports wait until a sweep starts.
"""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as _Submitit
except ImportError:  # the extra "slurm" is not installed
    _Submitit = None

SIGNAL = "USR1"  # before a job's time is up, and by scancel --signal=USR1
STOP_S = 60.0  # for a run to save a checkpoint
PREEMPTED_S = 60.0  # between Slurm's SIGTERM and its SIGKILL: KillWait is 30 s by default

# State of this job; not in the launcher, which is pickled when the job is requeued.
_child: subprocess.Popen[bytes] | None = None  # torchrun
_preempted = False


class ReplaceSlurmConfig(SearchPathPlugin):
    """Removes the plugin's own config ``submitit_slurm``, which Hydra would otherwise merge into
    configs/hydra/launcher/submitit_slurm.yaml with a warning.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        launchers = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
        launchers.pop("submitit_slurm.yaml", None)


class TorchrunSlurmLauncher(_Submitit or Launcher):  # type: ignore[misc]
    """Submits the runs that have no result yet, waits for them and shows the table.

    The exit codes are those of ``hydra/launcher=local``. The program may be killed: the jobs go on,
    and the same command waits for the remaining ones.
    """

    def __init__(self, **params: Any) -> None:
        if _Submitit is None:
            print(
                "error: hydra/launcher=submitit_slurm needs the extra slurm: "
                "pip install -e '.[slurm]'",
                file=sys.stderr,
            )
            raise SystemExit(2)
        super().__init__(**params)
        self.script: list[str] = []
        self.processes = self.retries = 1

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.task_function = None  # not pickled: a job starts the script itself

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from hydra_plugins.sn_launchers._compose import completed_jobs

        # Set it before submitit is imported; the jobs inherit it.
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = SIGNAL
        # A job imports this launcher again, from any working directory.
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return completed_jobs(self._launch, job_overrides)

    def _launch(self, job_overrides: Sequence[Sequence[str]]) -> int:
        from hydra_plugins.sn_launchers._compose import compose_runs, script_and_options
        from hydra_plugins.sn_launchers._slurm_jobs import follow
        from sn_imagenet.errors import ConfigError
        from sn_imagenet.sweeps.plan import plan
        from sn_imagenet.sweeps.planned import COMPLETE, sweep_settings

        settings = sweep_settings(self.config)
        nodes = int(self.params["nodes"])
        if settings.gpus_per_run % nodes:
            raise ConfigError(
                f"sweep.gpus_per_run={settings.gpus_per_run}: expected a multiple of "
                f"hydra.launcher.nodes={nodes}"
            )
        context = self.hydra_context
        runs = compose_runs(context, self.config, job_overrides, settings.gpus_per_run)
        if settings.dry_run:
            print("\n".join(plan(runs, len(runs), settings.measured)), flush=True)
            return 0
        self.script = script_and_options(self.config)
        self.processes, self.retries = settings.gpus_per_run // nodes, settings.retries
        waiting = [run for run in runs if run.state()[0] not in COMPLETE]
        jobs: dict[Path, str] = {}
        if waiting:
            print(f"submitting {len(waiting)} of {len(runs)} runs; the others have their result")
            sys.stdout.flush()
            for run, job in zip(waiting, self._submit(waiting), strict=True):
                jobs[run.run_dir] = job.job_id
        return follow(runs, jobs, str(self.params["submitit_folder"]))

    def _submit(self, waiting: list[Any]) -> list[Any]:
        """Submit as hydra-submitit-launcher does, without its waiting, which ends at a dead job."""
        import submitit
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

        from sn_imagenet.errors import UserError

        params = dict(self.params)
        folder, times = params.pop("submitit_folder"), params.pop("max_num_timeout")
        if shutil.which("srun") is None or shutil.which("sbatch") is None:
            raise UserError(
                "hydra/launcher=submitit_slurm: this machine has no Slurm (srun and sbatch); use a "
                "login node of the cluster, or hydra/launcher=local"
            )
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=times)
        common = {field.name for field in dataclasses.fields(BaseQueueConf)}
        executor.update_parameters(
            **{key if key in common else f"slurm_{key}": value for key, value in params.items()}
        )
        try:
            return list(executor.map_array(self, waiting))
        except submitit.core.utils.FailedJobError as error:
            reason = [line for line in str(error).splitlines() if line.strip()][-1:]
            raise UserError(f"Slurm takes no jobs: {' '.join(reason)}") from error

    def __call__(self, run: Any) -> int:
        """Execute one :class:`~sn_imagenet.sweeps.planned.PlannedRun` in its job, on each of its
        nodes; returns torchrun's exit code.
        """
        from sn_imagenet.sweeps.planned import COMPLETE
        from sn_imagenet.sweeps.starters import torchrun

        global _child, _preempted
        # Slurm preempts with SIGTERM to all processes of the job; torchrun's save by themselves.
        signal.signal(signal.SIGTERM, _on_sigterm)
        command = torchrun(self.processes, self.script, rendezvous())
        failures = 0
        while True:
            _preempted = False
            _child = subprocess.Popen([*command, *run.overrides], env=_environment(self.processes))
            # Not wait(), which holds a lock that the signal handler needs.
            while _child.poll() is None:
                time.sleep(0.2)
            code = _child.returncode
            if code == 0 or run.state()[0] in COMPLETE:
                return 0
            if _preempted:
                # Slurm is about to end and requeue the job; if it does not, start the run again.
                time.sleep(PREEMPTED_S)
                continue
            failures += 1
            if failures > self.retries:
                return code

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Called by submitit before it requeues the job: let the run save a checkpoint and end."""
        if _child is not None:
            with suppress(ProcessLookupError):
                _child.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_S
            while _child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
        return super().checkpoint(*args, **kwargs)


def _on_sigterm(number: int, frame: object) -> None:
    global _preempted
    _preempted = True


def _environment(processes: int) -> dict[str, str]:
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // processes))
    return {**os.environ, "OMP_NUM_THREADS": threads}


def rendezvous() -> list[str]:
    """torchrun's rendezvous options: a free port for one node, or for several nodes a port of the
    first node that depends on the job id.

    torchrun must handle SIGUSR1, which would otherwise kill it and leave its workers behind.
    """
    handled = ["--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    if nodes == 1:
        return ["--standalone", *handled]
    job = os.environ["SLURM_JOB_ID"]
    names = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]],
        capture_output=True,
        text=True,
        check=True,
    )
    first = names.stdout.split()[0]
    return [
        f"--nnodes={nodes}",
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint={first}:{20000 + int(job) % 10000}",
        f"--rdzv_id={job}.{os.environ.get('SLURM_RESTART_COUNT', '0')}",
        f"--local-addr={socket.gethostname()}",
        *handled,
    ]
