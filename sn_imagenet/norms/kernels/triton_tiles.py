"""Tile sizes of the Triton kernels: the tiles of an activation, and the choice of the fastest.

A tile is a block of channels by a block of pixels of one sample. Contiguous maps are read along the
pixels, channels_last maps along the channels. A program takes one tile after another, so that it
loads its tables, and adds its threads' sums, once. The pixels are divided into parts until there
are as many programs as the GPU runs at once; partial sums are then joined.

The first of :data:`TILES` should usually be the fastest: 2048 elements, 16 for each of 128 threads,
with two 16-byte loads of bf16, or four of fp32, in flight per thread, and eight programs on each
multiprocessor. The second divides its work into more programs, in case some end late. Each kernel
is timed once with every tile on each class of shapes; the microseconds are stored in the user's
cache directory.
Different tiles add in a different order, so ``torch.use_deterministic_algorithms``
(trainer.deterministic) always uses the first tile. So does the capture of a CUDA graph, in which
nothing can be timed; after a warm-up, which graphs require anyway, it gets the chosen tiles.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sn_imagenet.native import cache_directory

MAX_PARTS = 64
TRIALS = 5
CALLS = 10
SLEEP_CYCLES = 3_000_000  # 1.5 ms at 2 GHz: longer than ten launches take in Python


class Tile(NamedTuple):
    """Number of elements, maximum along a row of pixels and of channels, warps, and the number of
    programs per multiprocessor that a launch should reach."""

    elements: int
    max_row: int
    max_channels: int
    num_warps: int
    programs: int

    def half(self) -> Tile:
        """For kernels that read several activations: as many bytes in flight, fewer registers."""
        return self._replace(elements=self.elements // 2)


TILES = (
    Tile(2048, 1024, 64, 4, 8),
    Tile(2048, 1024, 64, 4, 32),
    Tile(1024, 512, 64, 2, 16),
    Tile(4096, 2048, 128, 8, 4),
)


class Launch:
    """Sizes, strides and grids of the tiles of one activation."""

    def __init__(self, shape: torch.Size, rows: bool, tile: Tile, multiprocessors: int) -> None:
        n, self.channels, height, width = shape
        self.area = height * width
        self.tables = n * self.channels
        if rows:
            strides = (self.channels * self.area, self.area, 1)
            self.bp = min(power_of_two(self.area), tile.max_row)
            self.bc = min(power_of_two(self.channels), tile.elements // self.bp)
        else:
            strides = (self.channels * self.area, 1, self.channels)
            self.bc = min(power_of_two(self.channels), tile.max_channels)
            self.bp = min(power_of_two(self.area), tile.elements // self.bc)
        blocks_c = -(-self.channels // self.bc)
        self.programs = n * blocks_c
        wanted = tile.programs * multiprocessors // self.programs
        self.per_part, self.parts = self._divide(min(wanted, MAX_PARTS))
        per_part, elementwise_parts = self._divide(wanted)
        # One grid axis: CUDA limits the others to 65535, and large images have more tiles.
        self.reduction_programs = self.programs * self.parts
        self.elementwise_programs = self.programs * elementwise_parts
        # The arguments after the tensors, for either kind of kernel.
        sizes, rest = (self.programs, self.channels, self.area), (blocks_c, *strides)
        self.reduction = (*sizes, self.per_part, self.tables, *rest)
        self.elementwise = (*sizes, per_part, *rest)
        self.blocks = {"BC": self.bc, "BP": self.bp, "num_warps": tile.num_warps}

    def _divide(self, wanted: int) -> tuple[int, int]:
        """Pixels of a part, in whole tiles, and the number of parts: none empty, at most wanted."""
        tiles = -(-self.area // self.bp)
        per_part = -(-tiles // max(wanted, 1)) * self.bp
        return per_part, -(-self.area // per_part)


@lru_cache(maxsize=4096)
def _launch(shape: torch.Size, rows: bool, tile: Tile, device: torch.device) -> Launch:
    return Launch(shape, rows, tile, _multiprocessors(device))


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 132  # an H100's, for the interpreter
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch(x: Tensor, tile: Tile = TILES[0]) -> Launch:
    """The tiles of ``x``, contiguous or channels_last, not empty."""
    # A 1x1 map has both layouts; as channels_last it has long rows.
    rows = x.is_contiguous() and x.shape[2] * x.shape[3] > 1
    return _launch(x.shape, rows, tile, x.device)


def power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


class Tuner:
    """The fastest tile of each kernel by class of shapes; the times are stored in a file."""

    def __init__(self) -> None:
        # By device, then kernel and class: the microseconds of each of TILES.
        self._times: dict[str, dict[str, list[float]]] = {}
        self._tiles: dict[tuple[object, ...], Tile] = {}  # by kernel and activation

    def tile(self, name: str, x: Tensor, run: Callable[[Tile], object]) -> Tile:
        """The tile for the kernel ``name`` over ``x``; ``run`` runs it with a given tile."""
        if not can_time(x):
            return TILES[0]
        activation = (name, x.device, x.dtype, x.shape, x.is_contiguous())
        tile = self._tiles.get(activation)
        if tile is None:
            times = self._measure(name, x, run)
            if times is None:
                return TILES[0]
            tile = self._tiles[activation] = TILES[times.index(min(times))]
        return tile

    def _measure(
        self, name: str, x: Tensor, run: Callable[[Tile], object]
    ) -> Sequence[float] | None:
        device, key = _device_name(x.device), _shape_class(name, x)
        if device not in self._times:
            self._times[device] = _read(device)
        if key not in self._times[device]:
            if is_capturing():
                return None
            times = [round(time_call(partial(run, tile)), 2) for tile in TILES]
            # Other processes may have added theirs.
            self._times[device] = {**_read(device), **self._times[device], key: times}
            _write(device, self._times[device])
        return self._times[device][key]


def is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def can_time(x: Tensor) -> bool:
    """Whether tiles may be timed: not if sums must be deterministic."""
    return x.is_cuda and not torch.are_deterministic_algorithms_enabled()


def time_call(run: Callable[[], object]) -> float:
    """Microseconds of a call on the current CUDA stream, the fastest of some rounds.

    The device sleeps while Python launches the calls of a round, so that they follow each other
    without waiting for Python.
    """
    run()  # compiles
    times = []
    for _ in range(TRIALS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(SLEEP_CYCLES)
        start.record()
        for _ in range(CALLS):
            run()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / CALLS)
    return min(times)


def _shape_class(name: str, x: Tensor) -> str:
    """Key for shapes that share a choice: sizes rounded up to powers of two."""
    n, channels, height, width = x.shape
    layout = "rows" if x.is_contiguous() else "columns"
    sizes = (power_of_two(size) for size in (n, channels, height * width))
    return " ".join([name, str(x.dtype), layout, *map(str, sizes)])


@cache
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"


@cache
def _file(device: str) -> Path:
    import triton

    digest = hashlib.sha256(repr((device, triton.__version__, TILES)).encode())
    digest.update(Path(__file__).with_name("triton_kernels.py").read_bytes())
    return cache_directory() / f"tiles-{digest.hexdigest()[:16]}.json"


def _read(device: str) -> dict[str, list[float]]:
    try:
        entries = json.loads(_file(device).read_text())
        return {key: times for key, times in entries.items() if len(times) == len(TILES)}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # missing or damaged: time again


def _write(device: str, times: dict[str, list[float]]) -> None:
    with contextlib.suppress(OSError):  # on failure the next process times again
        file = _file(device)
        handle, temporary = tempfile.mkstemp(suffix=".json", dir=file.parent)
        with os.fdopen(handle, "w") as stream:
            json.dump(times, stream, indent=0, sort_keys=True)
        os.replace(temporary, file)
