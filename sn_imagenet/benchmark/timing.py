"""Fair timing on a noisy machine: interleaved rounds, medians, ratios."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

Key = TypeVar("Key", str, tuple[str, int])

SHORTEST_SAMPLE = 2e-3
"""Minimum seconds of one timed sample; shorter calls are repeated within it."""

WARM_UP = 3
"""Untimed calls. The first compiles, tunes and allocates."""


def median_seconds(
    contenders: Mapping[Key, Callable[[], object]],
    repeats: int,
    device: torch.device,
    warm_up: int = WARM_UP,
) -> dict[Key, float]:
    """Seconds per call of each contender, the median of the rounds.

    Every round calls every contender once, in a new random order. Other load on the machine, and
    memory left behind by a predecessor, thus affect all of them alike.

    Args:
        contenders: functions by name; each is called ``warm_up`` times before the first round.
        repeats: rounds.
    """
    calls: dict[Key, int] = {}
    for name, function in contenders.items():
        warm = [seconds_per_call(function, 1, device) for _ in range(warm_up)]
        calls[name] = math.ceil(SHORTEST_SAMPLE / warm[-1])
    samples: dict[Key, list[float]] = {name: [] for name in contenders}
    order = random.Random(0)
    for _ in range(repeats):
        for name in order.sample(list(contenders), len(contenders)):
            samples[name].append(seconds_per_call(contenders[name], calls[name], device))
    return {name: statistics.median(values) for name, values in samples.items()}


def capture_graph(function: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Capture ``function`` as one CUDA graph. A replay launches all of its kernels at once, so only
    the device's time remains.
    """
    # Capture needs a warm-up on a side stream: cuDNN chooses, Triton tunes, SGD allocates.
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return partial(_replay, graph, function)


def _replay(graph: torch.cuda.CUDAGraph, recorded: object) -> None:
    """Replay ``graph``; ``recorded`` keeps alive the memory that it reads."""
    graph.replay()


def seconds_per_call(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """The mean over ``calls`` calls, from an idle device until it is idle again."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class StorageLog(TorchDispatchMode):
    """Records every storage that an operator returns, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in filter(torch.is_tensor, torch.utils._pytree.tree_leaves(result)):
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            self._storages[reference.cdata] = (reference, storage.nbytes())
        return result

    def live_bytes(self, *excluded: Tensor) -> int:
        """Bytes of the storages that are still referenced, without those of ``excluded``."""
        ignored = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in excluded}
        return sum(
            size
            for cdata, (reference, size) in self._storages.items()
            if cdata not in ignored and not reference.expired()
        )
