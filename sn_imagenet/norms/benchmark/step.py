"""The whole training step of ResNet-50: forward, loss, backward, SGD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sn_imagenet.norms.benchmark.layers import DTYPES, LAYOUTS, REFERENCE
from sn_imagenet.norms.benchmark.timing import alternate
from sn_imagenet.norms.control import set_replicas
from sn_imagenet.norms.layers import BatchNorm2d, GroupNorm2d
from sn_imagenet.norms.switch_norm import SwitchNorm2d

METHODS: dict[str, Callable[..., nn.Module]] = {
    REFERENCE: nn.BatchNorm2d,
    "BN": BatchNorm2d,
    "GN": GroupNorm2d,
    "SN": SwitchNorm2d,
}


@dataclass
class StepCase:
    """Median seconds of a step; peak memory in bytes where the device counts it (CUDA)."""

    seconds: dict[str, float]
    images_per_second: dict[str, float]
    peak_memory: dict[str, int]


def measure_steps(
    batch: int,
    image_size: int,
    layout: str,
    dtype: str,
    device: torch.device,
    repeats: int,
    replicas: int = 8,
) -> StepCase:
    """Time ResNet-50's step on ``batch`` random images under each method.

    Beside one set of statistics for the whole batch, SN and BN with ``replicas`` sets are timed in
    one pass and in a pass each: the setting (replicas, batch / replicas) on one device.

    Raises:
        ValueError: ``replicas`` does not divide ``batch``.
    """
    if batch % replicas:
        raise ValueError(f"batch={batch} cannot be dealt to {replicas} replicas")
    torch.manual_seed(0)
    images = torch.randn(batch, 3, image_size, image_size, device=device)
    images = images.contiguous(memory_format=LAYOUTS[layout])
    labels = torch.randint(1000, (batch,), device=device)
    setting = f"({replicas},{batch // replicas})"

    steps: dict[str, Callable[[], object]] = {}
    for name, layer in METHODS.items():
        network = timm.create_model("resnet50", norm_layer=layer).to(device)
        network = network.to(memory_format=LAYOUTS[layout])
        steps[name] = _step(network, images, labels, dtype, passes=1)
    for name in ("BN", "SN"):
        network = timm.create_model("resnet50", norm_layer=METHODS[name]).to(device)
        network = network.to(memory_format=LAYOUTS[layout])
        set_replicas(network, replicas)
        steps[f"{name} {setting} one pass"] = _step(network, images, labels, dtype, passes=1)
    network = timm.create_model("resnet50", norm_layer=METHODS["SN"]).to(device)
    network = network.to(memory_format=LAYOUTS[layout])
    passes = _step(network, images, labels, dtype, passes=replicas)
    steps[f"SN {setting} {replicas} passes"] = passes

    seconds = alternate(steps, repeats, device)
    return StepCase(
        seconds,
        {name: batch / value for name, value in seconds.items()},
        {name: _peak(step, device) for name, step in steps.items() if device.type == "cuda"},
    )


def _step(
    network: nn.Module, images: Tensor, labels: Tensor, dtype: str, passes: int
) -> Callable[[], object]:
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    autocast = torch.autocast(images.device.type, DTYPES[dtype], enabled=dtype != "fp32")

    def step() -> None:
        optimizer.zero_grad()
        for first in range(passes):
            with autocast:
                loss = F.cross_entropy(network(images[first::passes]), labels[first::passes])
            (loss / passes).backward()
        optimizer.step()

    return step


def _peak(step: Callable[[], object], device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device)
