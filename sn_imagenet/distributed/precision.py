"""Precision and determinism of a run: fp32 as in the paper, or what CUDA offers beyond it.

Statistics are fp32 in every precision: the normalizers see to that themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch

from sn_imagenet.errors import ConfigError

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def set_precision(precision: str, device: torch.device) -> None:
    """Allow TF32 for ``tf32`` alone; PyTorch's default would use it in convolutions.

    Raises:
        ConfigError: another precision than fp32 is asked for on the CPU.
    """
    if device.type != "cuda":
        if precision != "fp32":
            raise ConfigError(f"trainer.precision={precision}: needs CUDA; the CPU has fp32 only")
        return
    allowed = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cudnn.benchmark = True


def set_determinism(deterministic: bool, device: torch.device) -> None:
    """On CUDA the same kernels each time, or an error where there is none; the CPU's are always."""
    if device.type == "cuda":
        torch.use_deterministic_algorithms(deterministic)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.benchmark = False


def autocast_for(
    precision: str, device: torch.device
) -> Callable[[], AbstractContextManager[None]]:
    """Makes the context of a forward pass in ``precision``."""
    half = _HALF.get(precision)
    return partial(torch.autocast, device.type, dtype=half, enabled=half is not None)
