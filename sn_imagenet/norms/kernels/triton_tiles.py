"""Tile sizes of the Triton kernels: the tiles of an activation, and the choice of the fastest.

A tile is a block of channels by a block of pixels of one sample. Contiguous maps are read along the
pixels, channels_last maps along the channels. If samples times blocks of channels give too few
programs for the GPU (the first layers have 64 channels: a program per channel would leave most of
132 multiprocessors idle), the pixels of a sum are also split and the partial sums merged.

The first of :data:`TILES` should usually be the fastest: 2048 elements, 16 for each of 128 threads,
with two 16-byte loads of bf16, or four of fp32, in flight per thread. Each kernel is timed once
with every tile on each class of shapes, and the choice is stored in the user's cache directory.
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
from collections.abc import Callable
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sn_imagenet.native import cache_directory

# Four programs per multiprocessor of an H100 or H200 hide the memory latency.
TARGET_PROGRAMS = 4 * 132
MAX_SPLITS = 64
TRIALS = 5


class Tile(NamedTuple):
    """Number of elements, maximum along a row of pixels and of channels, and warps."""

    elements: int
    max_row: int
    max_channels: int
    num_warps: int


TILES = (
    Tile(2048, 1024, 64, 4),
    Tile(1024, 512, 64, 4),
    Tile(4096, 1024, 64, 4),
    Tile(4096, 2048, 128, 8),
)


class Launch:
    """Sizes, strides and grids of the tiles of one activation."""

    def __init__(self, shape: torch.Size, rows: bool, tile: Tile) -> None:
        n, self.channels, height, width = shape
        self.area = height * width
        self.tables = n * self.channels
        if rows:
            self.strides = (self.channels * self.area, self.area, 1)
            self.bp = min(_power_of_two(self.area), tile.max_row)
            self.bc = min(_power_of_two(self.channels), tile.elements // self.bp)
        else:
            self.strides = (self.channels * self.area, 1, self.channels)
            self.bc = min(_power_of_two(self.channels), tile.max_channels)
            self.bp = min(_power_of_two(self.area), tile.elements // self.bc)
        self.blocks_c = -(-self.channels // self.bc)
        self.programs = n * self.blocks_c
        blocks_p = -(-self.area // self.bp)
        target_splits = min(-(-TARGET_PROGRAMS // self.programs), blocks_p, MAX_SPLITS)
        # Each split gets whole tiles, and no split is empty.
        self.per_split = -(-blocks_p // target_splits) * self.bp
        self.splits = -(-self.area // self.per_split)
        # One grid axis: CUDA limits the others to 65535, and large images have more tiles.
        self.reduction_programs = self.programs * self.splits
        self.elementwise_programs = self.programs * blocks_p
        # The arguments after the tensors, for either kind of kernel.
        sizes, strides = (self.programs, self.channels, self.area), (self.blocks_c, *self.strides)
        self.reduction = (*sizes, self.per_split, self.tables, *strides)
        self.elementwise = (*sizes, *strides)
        self.blocks = {"BC": self.bc, "BP": self.bp, "num_warps": tile.num_warps}


@lru_cache(maxsize=4096)
def _launch(shape: torch.Size, rows: bool, tile: Tile) -> Launch:
    return Launch(shape, rows, tile)


def launch(x: Tensor, tile: Tile = TILES[0]) -> Launch:
    """The tiles of ``x``, contiguous or channels_last, not empty."""
    # A 1x1 map has both layouts; as channels_last it has long rows.
    rows = x.is_contiguous() and x.shape[2] * x.shape[3] > 1
    return _launch(x.shape, rows, tile)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


class Tuner:
    """The fastest tile of each kernel by class of shapes, stored in a file."""

    def __init__(self) -> None:
        self._chosen: dict[str, dict[str, int]] = {}  # by device, then kernel and class
        self._tiles: dict[tuple[object, ...], Tile] = {}  # by kernel and activation

    def tile(self, name: str, x: Tensor, run: Callable[[Tile], object]) -> Tile:
        """The tile for the kernel ``name`` over ``x``; ``run`` runs it with a given tile."""
        if not can_time(x):
            return TILES[0]
        activation = (name, x.device, x.dtype, x.shape, x.is_contiguous())
        tile = self._tiles.get(activation)
        if tile is None:
            tile = self._choose(name, x, run)
            if tile is None:
                return TILES[0]
            self._tiles[activation] = tile
        return tile

    def _choose(self, name: str, x: Tensor, run: Callable[[Tile], object]) -> Tile | None:
        device, key = _device_name(x.device), _shape_class(name, x)
        if device not in self._chosen:
            self._chosen[device] = _read(device)
        if key not in self._chosen[device]:
            if is_capturing():
                return None
            times = [time_call(partial(run, tile)) for tile in TILES]
            # Other processes may have added choices.
            chosen = {**_read(device), **self._chosen[device]}
            chosen[key] = times.index(min(times))
            _write(device, chosen)
            self._chosen[device] = chosen
        return TILES[self._chosen[device][key]]


def is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def can_time(x: Tensor) -> bool:
    """Whether tiles may be timed: not if sums must be deterministic."""
    return x.is_cuda and not torch.are_deterministic_algorithms_enabled()


def time_call(run: Callable[[], object]) -> float:
    """Minimum time of a few calls on the current CUDA stream, in ms; compiles first."""
    run()
    times = []
    for _ in range(TRIALS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return min(times)


def _shape_class(name: str, x: Tensor) -> str:
    """Key for shapes that share a choice: sizes rounded up to powers of two."""
    n, channels, height, width = x.shape
    layout = "rows" if x.is_contiguous() else "columns"
    sizes = (_power_of_two(size) for size in (n, channels, height * width))
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


def _read(device: str) -> dict[str, int]:
    try:
        entries = json.loads(_file(device).read_text())
        return {str(k): v for k, v in entries.items() if v in range(len(TILES))}
    except (OSError, ValueError, AttributeError):
        return {}  # missing or damaged: time again


def _write(device: str, chosen: dict[str, int]) -> None:
    with contextlib.suppress(OSError):  # on failure the next process times again
        file = _file(device)
        handle, temporary = tempfile.mkstemp(suffix=".json", dir=file.parent)
        with os.fdopen(handle, "w") as stream:
            json.dump(chosen, stream, indent=0, sort_keys=True)
        os.replace(temporary, file)
