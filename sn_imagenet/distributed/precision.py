"""Device, precision and determinism of a run: fp32 as in the paper, or TF32, bf16 or fp16 on CUDA.

Statistics are fp32 in every precision; the normalization layers ensure this themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch

from sn_imagenet.environment import local_rank
from sn_imagenet.errors import ConfigError

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of this rank: ``auto`` is CUDA if available, with one device per local rank.

    Raises:
        ConfigError: CUDA is requested but absent, or there are more local ranks than devices.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda: no CUDA device is available; use auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local = local_rank()
    devices = torch.cuda.device_count()
    if local >= devices:
        raise ConfigError(
            f"process {local} of this machine has no GPU of its own ({devices} available); "
            f"start at most {devices} processes, or use trainer.device=cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def set_precision(precision: str, device: torch.device) -> None:
    """Allow TF32 only for ``tf32``. By default PyTorch uses TF32 in convolutions.

    Raises:
        ConfigError: a precision other than fp32 is requested on the CPU.
    """
    if device.type != "cuda":
        if precision != "fp32":
            raise ConfigError(f"trainer.precision={precision}: needs CUDA; on the CPU use fp32")
        return
    allowed = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cudnn.benchmark = True


def describe_precision(precision: str, device: torch.device) -> str | None:
    """A line for a run in fp32 on a GPU that is several times as fast in other precisions."""
    if precision != "fp32" or device.type != "cuda":
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None
    return (
        "fp32 without TF32, as in the paper: this GPU is several times as fast with "
        "trainer.precision=bf16 or tf32, which is recorded as a departure"
    )


def set_determinism(deterministic: bool, device: torch.device) -> None:
    """Use deterministic CUDA kernels, or fail if there is none; CPU kernels always are."""
    if device.type == "cuda":
        torch.use_deterministic_algorithms(deterministic)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.benchmark = False


def convolution_dtype(precision: str) -> torch.dtype:
    """The dtype in which :func:`autocast_for` convolves."""
    return _HALF.get(precision, torch.float32)


def autocast_for(
    precision: str, device: torch.device
) -> Callable[[], AbstractContextManager[None]]:
    """A function that returns the autocast context of a forward pass in ``precision``."""
    half = _HALF.get(precision)
    return partial(torch.autocast, device.type, dtype=half, enabled=half is not None)
