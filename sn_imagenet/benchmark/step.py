"""The whole training step of a network: forward, loss, backward, SGD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sn_imagenet.benchmark.contenders import REFERENCE
from sn_imagenet.benchmark.layers import DTYPES, LAYOUTS
from sn_imagenet.benchmark.timing import StorageLog, alternate
from sn_imagenet.norms.control import set_replicas
from sn_imagenet.norms.layers import BatchNorm2d, GroupNorm2d
from sn_imagenet.norms.switch_norm import SwitchNorm2d


def _group_norm(channels: int, **factory: Any) -> nn.Module:
    return nn.GroupNorm(32, channels, **factory)


METHODS: dict[str, Callable[..., nn.Module]] = {
    REFERENCE: nn.BatchNorm2d,
    "nn.GroupNorm(32)": _group_norm,
    "BN": BatchNorm2d,
    "GN": GroupNorm2d,
    "SN": SwitchNorm2d,
}

MODES = {
    "eager": None,
    "graph": None,
    "compile": "default",
    "reduce-overhead": "reduce-overhead",
}
"""How a step runs: as it is, whole in a CUDA graph, or with the network under torch.compile in the
mode of that name."""

_CAPTURE_WARM_UP = 3


@dataclass(frozen=True)
class StepKind:
    """What every contender of a comparison shares. ``batch`` images, dealt to ``replicas`` where a
    contender has several sets of statistics."""

    batch: int
    image_size: int
    layout: str = "contiguous"
    dtype: str = "fp32"
    replicas: int = 8
    network: str = "resnet50"

    @property
    def setting(self) -> str:
        return f"({self.replicas},{self.batch // self.replicas})"


@dataclass
class StepCase:
    """Median seconds of a step, by contender.

    Attributes:
        kept: bytes that a forward pass keeps for backward, eager contenders only.
        peak_memory: bytes at a step's height, weights, gradients and momentum included, where the
            device counts them (CUDA).
    """

    kind: StepKind
    seconds: dict[str, float]
    kept: dict[str, int]
    peak_memory: dict[str, int]

    @property
    def images_per_second(self) -> dict[str, float]:
        return {name: self.kind.batch / value for name, value in self.seconds.items()}

    def ratios(self) -> dict[str, float]:
        """Time over that of nn.BatchNorm2d with the whole batch as one, run eagerly if it was."""
        reference = self.seconds.get(REFERENCE) or next(
            s for name, s in self.seconds.items() if name.startswith(REFERENCE)
        )
        return {name: value / reference for name, value in self.seconds.items()}


def check_mode(mode: str, device: torch.device) -> None:
    """Raise ValueError for a mode that the device does not have."""
    if mode not in MODES:
        raise ValueError(f"mode {mode}: expected {', '.join(MODES)}")
    if mode == "graph" and device.type != "cuda":
        raise ValueError(f"mode graph: CUDA graphs need a CUDA device, this is {device.type}")


def measure_steps(
    kind: StepKind, device: torch.device, repeats: int, modes: Sequence[str] = ("eager",)
) -> StepCase:
    """Time a network's step on random images under each method and mode.

    Beside one set of statistics for the whole batch, SN and BN with ``kind.replicas`` sets are
    timed in one pass and, eagerly, SN in a pass each: the setting (replicas, batch / replicas) on
    one device. With one sample per replica SN is {in, ln}, as in the paper's Table 2.

    Raises:
        ValueError: the replicas do not divide the batch; a mode that the device does not have.
    """
    if kind.batch % kind.replicas:
        raise ValueError(f"batch={kind.batch} cannot be dealt to {kind.replicas} replicas")
    for mode in modes:
        check_mode(mode, device)
    torch.manual_seed(0)
    images = torch.randn(kind.batch, 3, kind.image_size, kind.image_size, device=device)
    images = images.contiguous(memory_format=LAYOUTS[kind.layout])
    labels = torch.randint(1000, (kind.batch,), device=device)

    steps: dict[str, Callable[[], object]] = {}
    kept: dict[str, int] = {}
    peak: dict[str, int] = {}
    # As training sets them: cuDNN's best algorithms, and no TF32 in what is called fp32.
    with torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, benchmark=True, allow_tf32=False
    ):
        for mode in modes:
            for name, method, replicas, passes in _contenders(kind, mode):
                before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
                network = _network(kind, method, replicas, device)
                if mode == "eager":
                    kept[name] = _kept(network, kind, images[::passes])
                if MODES[mode] is not None:
                    _make_room_for_compilations()
                    network.compile(mode=MODES[mode], fullgraph=True, dynamic=False)
                step = _step(network, kind, images, labels, passes)
                steps[name] = _captured(step, device) if mode == "graph" else step
                if device.type == "cuda":
                    peak[name] = _peak(steps[name], device) - before
        return StepCase(kind, alternate(steps, repeats, device), kept, peak)


def _contenders(kind: StepKind, mode: str) -> list[tuple[str, Callable[..., nn.Module], int, int]]:
    """(name, layer, replicas, passes)."""
    suffix = "" if mode == "eager" else f", {mode}"
    replicas, setting = kind.replicas, kind.setting
    switch_norm = METHODS["SN"]
    if kind.batch == replicas:
        switch_norm = partial(SwitchNorm2d, omega=("in", "ln"))
    found = [(f"{name}{suffix}", layer, 1, 1) for name, layer in METHODS.items()]
    for name, layer in (("BN", METHODS["BN"]), ("SN", switch_norm)):
        found.append((f"{name} {setting} one pass{suffix}", layer, replicas, 1))
    if mode == "eager":
        found.append((f"SN {setting} {replicas} passes", switch_norm, 1, replicas))
    return found


def _network(
    kind: StepKind, layer: Callable[..., nn.Module], replicas: int, device: torch.device
) -> nn.Module:
    network: nn.Module = timm.create_model(kind.network, norm_layer=layer).to(device)
    set_replicas(network, replicas)
    return network.to(memory_format=LAYOUTS[kind.layout]).train()


def _step(
    network: nn.Module, kind: StepKind, images: Tensor, labels: Tensor, passes: int
) -> Callable[[], None]:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad(set_to_none=True)
        for first in range(passes):
            with _autocast(kind, images.device):
                loss = F.cross_entropy(network(images[first::passes]), labels[first::passes])
            (loss / passes).backward()
        optimizer.step()

    return step


def _autocast(kind: StepKind, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, DTYPES[kind.dtype], enabled=kind.dtype != "fp32")


def _captured(step: Callable[[], None], device: torch.device) -> Callable[[], object]:
    """The step as one CUDA graph: a replay launches all of its kernels at once."""
    # On a stream of its own first, as capture demands: cuDNN chooses, Triton tunes, SGD allocates.
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_CAPTURE_WARM_UP):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _make_room_for_compilations() -> None:
    # Dynamo keeps what it compiled by code, and all networks share theirs; past its limit, which is
    # for one network, it would refuse. Emptying it would throw away what is timed later.
    torch._dynamo.config.recompile_limit = 1000
    torch._dynamo.config.accumulated_recompile_limit = 1000


def _kept(network: nn.Module, kind: StepKind, images: Tensor) -> int:
    with StorageLog() as log, _autocast(kind, images.device):
        y = network(images)
    return log.alive(y, *network.parameters(), *network.buffers())


def _peak(step: Callable[[], object], device: torch.device) -> int:
    step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device)
