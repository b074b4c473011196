"""Triton's tiles are timed once, cached on disk, and not timed where timing is not allowed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from sn_imagenet.norms.kernels import triton_tiles
from sn_imagenet.norms.kernels.triton_tiles import TILES, Launch, Tile, Tuner

FASTEST = TILES[2]


class Clock:
    """Fake timer that records its calls; :data:`FASTEST` is the fastest tile."""

    def __init__(self) -> None:
        self.timed: list[Tile] = []

    def __call__(self, run: Callable[[], object]) -> float:
        tile = run()
        assert isinstance(tile, Tile)
        self.timed.append(tile)
        return 1.0 if tile == FASTEST else 2.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Clock]:
    """The tuner behaves as on a GPU and uses a temporary cache directory."""
    clock = Clock()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(triton_tiles, "time_call", clock)
    monkeypatch.setattr(triton_tiles, "can_time", lambda x: True)
    triton_tiles._file.cache_clear()
    yield clock
    triton_tiles._file.cache_clear()


def run(tile: Tile) -> Tile:
    return tile


def cache_file(folder: Path) -> Path:
    (file,) = (folder / "sn_imagenet").glob("tiles-*.json")
    return file


def test_a_class_of_shapes_is_timed_once(clock: Clock, tmp_path: Path) -> None:
    tuner, x = Tuner(), torch.empty(30, 64, 56, 56)
    assert tuner.tile("affine", x, run) == FASTEST
    assert clock.timed == list(TILES)
    for similar in (x, x[:17]):  # the last batch of an epoch
        assert tuner.tile("affine", similar, run) == FASTEST
    assert len(clock.timed) == len(TILES)
    others = (
        ("moments", x),
        ("affine", x.to(torch.bfloat16)),
        ("affine", x.contiguous(memory_format=torch.channels_last)),
        ("affine", x[:2]),
    )
    for count, (name, other) in enumerate(others, start=2):
        tuner.tile(name, other.contiguous() if other.shape[0] == 2 else other, run)
        assert len(clock.timed) == count * len(TILES)
    assert len(json.loads(cache_file(tmp_path).read_text())) == 5


def test_another_process_reads_the_cached_tiles(clock: Clock, tmp_path: Path) -> None:
    x = torch.empty(2, 3, 4, 4)
    Tuner().tile("affine", x, run)
    assert Tuner().tile("affine", x, run) == FASTEST
    assert len(clock.timed) == len(TILES)
    # Two concurrent processes keep each other's entries.
    first, second = Tuner(), Tuner()
    first.tile("affine", x, run), second.tile("affine", x, run)
    first.tile("moments", x, run), second.tile("gradient_sums", x, run)
    assert len(json.loads(cache_file(tmp_path).read_text())) == 3


def test_a_kernel_is_timed_without_the_time_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that takes 5 us for a call, which Python takes 60 us to launch."""
    now = {"host": 0.0, "device": 0.0}

    def launch(microseconds: float) -> None:
        now["host"] += 60
        now["device"] = max(now.values()) + microseconds

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.time = max(now.values())

        def synchronize(self) -> None:
            now["host"] = max(now.values())

        def elapsed_time(self, end: Event) -> float:
            return (end.time - self.time) / 1e3

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: launch(cycles / 2e3))
    assert triton_tiles.time_call(lambda: launch(5)) == pytest.approx(5)


def test_the_device_says_how_many_programs_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = type("Properties", (), {"multi_processor_count": 16})()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    shape, device = torch.Size((1, 64, 256, 256)), torch.device("cuda", 7)
    assert triton_tiles._launch(shape, False, TILES[0], device).elementwise_programs == 8 * 16


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"affine": 99}'])
def test_a_damaged_file_is_replaced(clock: Clock, tmp_path: Path, damage: str) -> None:
    x = torch.empty(2, 3, 4, 4)
    Tuner().tile("affine", x, run)
    cache_file(tmp_path).write_text(damage)
    assert Tuner().tile("affine", x, run) == FASTEST
    assert len(clock.timed) == 2 * len(TILES)
    assert Tuner().tile("affine", x, run) == FASTEST
    assert len(clock.timed) == 2 * len(TILES)


def test_no_tile_is_timed_during_a_graph_capture(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner, x = Tuner(), torch.empty(2, 3, 4, 4)
    monkeypatch.setattr(triton_tiles, "is_capturing", lambda: True)
    assert tuner.tile("affine", x, run) == TILES[0] and not clock.timed
    monkeypatch.setattr(triton_tiles, "is_capturing", lambda: False)
    assert tuner.tile("affine", x, run) == FASTEST  # the warm-up
    monkeypatch.setattr(triton_tiles, "is_capturing", lambda: True)
    assert tuner.tile("affine", x, run) == FASTEST


def test_deterministic_algorithms_use_the_first_tile() -> None:
    on_gpu = type("OnGpu", (), {"is_cuda": True})()
    assert triton_tiles.can_time(on_gpu)
    torch.use_deterministic_algorithms(True)
    try:
        assert not triton_tiles.can_time(on_gpu)
    finally:
        torch.use_deterministic_algorithms(False)
    assert Tuner().tile("affine", torch.empty(2, 3, 4, 4), run) == TILES[0]  # also on the CPU


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 65, 7, 7), (1, 64, 4000, 3000)], ids=str)
def test_tiles_cover_every_pixel_once(shape: tuple[int, ...], rows: bool, tile: Tile) -> None:
    tiles = Launch(torch.Size(shape), rows, tile, 132)
    n, channels, height, width = shape
    assert tiles.bc * tiles.bp <= tile.elements
    blocks = n * -(-channels // tiles.bc)
    for programs, numbers in (
        (tiles.reduction_programs, tiles.reduction),
        (tiles.elementwise_programs, tiles.elementwise),
    ):
        (parts, rest), per_part = divmod(programs, blocks), numbers[3]
        assert rest == 0 and per_part % tiles.bp == 0
        assert (parts - 1) * per_part < height * width <= parts * per_part
