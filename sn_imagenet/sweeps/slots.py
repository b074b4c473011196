"""Where cells can run on this machine: groups of GPUs, or shares of its cores."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from sn_imagenet.errors import UserError
from sn_imagenet.sweeps.settings import SweepSettings


@dataclass(frozen=True)
class Slot:
    """Room for one cell: a name for the table and what its environment says."""

    name: str
    environment: dict[str, str]

    @property
    def is_cpu(self) -> bool:
        """Whether its cell sees no GPU."""
        return not self.environment.get("CUDA_VISIBLE_DEVICES")


def machine_slots(settings: SweepSettings, device: str) -> list[Slot]:
    """The slots of this machine, each for a cell of ``settings.gpus_per_run`` processes.

    Args:
        device: the cells' ``trainer.device``; ``auto`` takes GPUs where there are any.

    Raises:
        UserError: there are too few GPUs for one cell, or for the slots asked for.
    """
    per_run, cores = settings.gpus_per_run, len(os.sched_getaffinity(0))
    gpus = [] if device == "cpu" else visible_gpus()
    if not gpus:
        if device == "cuda":
            raise UserError("trainer.device=cuda: this machine has no GPU; use auto or cpu")
        slots = settings.slots or max(1, cores // per_run)
        environment = _threads(cores, slots * per_run) | {"CUDA_VISIBLE_DEVICES": ""}
        return [Slot(f"CPU slot {i}", environment) for i in range(slots)]

    if len(gpus) < per_run:
        raise UserError(
            f"sweep.gpus_per_run={per_run}: this machine has {len(gpus)} GPU"
            f"{'s' if len(gpus) > 1 else ''}; replicas make a cell the same on fewer"
        )
    slots = settings.slots or len(gpus) // per_run
    if slots * per_run > len(gpus):
        raise UserError(
            f"sweep.slots={slots} cells of sweep.gpus_per_run={per_run}: this machine has "
            f"{len(gpus)} GPUs"
        )
    found = []
    for i in range(slots):
        mine = ",".join(gpus[i * per_run : (i + 1) * per_run])
        threads = _threads(cores, slots * per_run)
        found.append(Slot(f"GPU {mine}", threads | {"CUDA_VISIBLE_DEVICES": mine}))
    return found


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip() not in ("", "-1")]
    return [line.split(",")[0].strip() for line in _nvidia_smi("index")]


def gpu_names() -> set[str]:
    """The models of this machine's GPUs; empty without any."""
    return {line.strip() for line in _nvidia_smi("name")}


def _nvidia_smi(query: str) -> list[str]:
    # The driver's own tool, so that this process makes no CUDA context.
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line for line in done.stdout.splitlines() if line.strip()]


def _threads(cores: int, processes: int) -> dict[str, str]:
    """The cores shared out, unless the user has said otherwise."""
    own = os.environ.get("OMP_NUM_THREADS")
    return {"OMP_NUM_THREADS": own or str(max(1, cores // processes))}
