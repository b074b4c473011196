"""The loader's benchmark: what its contenders yield, and the arithmetic of the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sn_imagenet.benchmark.command import compose_config, run
from sn_imagenet.benchmark.loader import LIMIT, PILLOW, TORCHVISION, loader_contenders
from sn_imagenet.config import ExperimentConfig

SMALL = ["data.image_size=32", "data.resize_size=32"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for index, name in enumerate("aaaabbbb"):
        (folder / name).mkdir(exist_ok=True)
        pixels = noise.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{index}.jpg")
    return folder


def test_every_contender_passes_over_the_images(images: Path) -> None:
    def config(decode: str) -> ExperimentConfig:
        parts = [f"data.train={images}", f"data.val={images}", f"data.decode={decode}"]
        return compose_config(["data=imagefolder", *parts, *SMALL, "trainer.device=cpu"])

    passed = {
        name: list(batches(0)) for name, batches in loader_contenders(config, images, 4, 0).items()
    }
    assert all(len(batches) == 2 for batches in passed.values())
    assert passed[PILLOW] == passed[LIMIT] == [4, 4]
    for name in (TORCHVISION, "exact, normalized", "fast, normalized"):
        for pixels, labels in passed[name]:  # type: ignore[misc]
            assert (pixels.shape, pixels.dtype) == ((4, 3, 32, 32), torch.float32)
            assert pixels.min() < 0 < pixels.max() and set(labels.tolist()) <= {0, 1}
    for name in ("exact", "fast"):
        assert passed[name][0].images.dtype == torch.uint8  # type: ignore[attr-defined]


def test_the_report(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "loader.json"
    chosen = ["--images", str(images), "--workers", "1", "--batch", "4", "--repeats", "1"]
    chosen += ["--json", str(out), "--device", "cpu"]
    run("", ["loader", *SMALL, *chosen])
    report = json.loads(out.read_text())
    speeds = {(s["contender"], s["workers"]): s["images_per_s"] for s in report["speeds"]}
    assert len(speeds) == 14 and {workers for _, workers in speeds} == {0, 1}
    assert report["ratios"]["fast/decode"] == pytest.approx(
        speeds["fast, normalized", 0] / speeds[PILLOW, 0]
    )
    assert report["ratios"]["exact/reference, as stored"] == pytest.approx(
        speeds["exact", 0] / speeds[TORCHVISION, 0]
    )
    assert report["images"] == 8
    output = capsys.readouterr().out
    assert "images/s by workers" in output and "fast/limit" in output
