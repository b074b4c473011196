"""The slots of this machine in which runs execute: groups of GPUs, or shares of its cores."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from sn_imagenet.config.experiment import CORES
from sn_imagenet.errors import UserError
from sn_imagenet.sweeps.planned import SweepSettings


@dataclass(frozen=True)
class Slot:
    """A place for one run: a name for the table, and environment variables for the run."""

    name: str
    environment: dict[str, str]


def machine_slots(settings: SweepSettings, device: str) -> list[Slot]:
    """The slots of this machine, each for a run of ``settings.gpus_per_run`` processes.

    Args:
        device: the ``trainer.device`` of the runs; ``auto`` uses GPUs if there are any.

    Raises:
        UserError: there are too few GPUs for one run, or for the requested slots.
    """
    per_run, cores = settings.gpus_per_run, len(os.sched_getaffinity(0))
    gpus = [] if device == "cpu" else visible_gpus()
    if not gpus:
        if device == "cuda":
            raise UserError("trainer.device=cuda: this machine has no GPU; use auto or cpu")
        slots = settings.slots or max(1, cores // per_run)
        environment = _threads(cores, slots * per_run) | {"CUDA_VISIBLE_DEVICES": ""}
        return [Slot(f"CPU slot {i}", environment) for i in range(slots)]

    slots = settings.slots or len(gpus) // per_run
    if not 0 < slots * per_run <= len(gpus):
        number = f"sweep.slots={settings.slots} with " if settings.slots else ""
        raise UserError(
            f"{number}sweep.gpus_per_run={per_run}: this machine has {len(gpus)} GPU"
            f"{'s' if len(gpus) > 1 else ''}; replicas give the same result on fewer GPUs"
        )
    threads = _threads(cores, slots * per_run)
    groups = [",".join(gpus[i * per_run : (i + 1) * per_run]) for i in range(slots)]
    return [Slot(f"GPU {group}", threads | {"CUDA_VISIBLE_DEVICES": group}) for group in groups]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    return [line.split(",")[0].strip() for line in _nvidia_smi("index")]


def gpu_names() -> set[str]:
    """The model names of this machine's GPUs; empty without GPUs."""
    return {line.strip() for line in _nvidia_smi("name")}


def _nvidia_smi(query: str) -> list[str]:
    # Use the driver's tool, so that this process creates no CUDA context.
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line for line in done.stdout.splitlines() if line.strip()]


def _threads(cores: int, processes: int) -> dict[str, str]:
    """An equal share of the cores per process, as its threads unless OMP_NUM_THREADS is set."""
    share = str(max(1, cores // processes))
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or share, CORES: share}
