"""Detectors: where they have normalization layers, how they start, and what stands still."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.errors import ConfigError
from sn_imagenet.models import layer_positions
from sn_imagenet.norms import norm_layers
from sn_imagenet.tasks.detection.models import build_detector

ROOT = Path(__file__).parents[2]
Compose = Callable[..., ExperimentConfig]
PARTS = {
    "backbone.body.": "body",
    "backbone.fpn.": "fpn",
    "rpn.": "rpn",
    "roi_heads.box_head.layer4.": "body",
    "roi_heads.box_head.": "box",
    "roi_heads.mask_head.": "mask",
}


def build(composed: Compose, *overrides: str) -> Any:
    return build_detector(composed("task=detection", *overrides), 3)


def places(network: nn.Module) -> dict[str, list[str]]:
    """Class names of the normalization layers by part of the detector."""
    found: dict[str, list[str]] = {}
    for name, layer in norm_layers(network).items():
        part = next(part for prefix, part in PARTS.items() if name.startswith(prefix))
        found.setdefault(part, []).append(type(layer).__name__)
    return found


def target(side: int = 64) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor([[4.0, 4.0, 40.0, 30.0], [20.0, 20.0, 60.0, 60.0]]),
        "labels": torch.tensor([1, 3]),
        "masks": torch.ones(2, side, side, dtype=torch.uint8),
    }


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("model=faster_rcnn_c4", "norm=sn"), {"body": (53, "SwitchNorm2d")}),
        (
            ("model=faster_rcnn_fpn", "norm=gn"),
            {"body": (53, "GroupNorm2d"), "fpn": (8, "GroupNorm2d"), "box": (4, "GroupNorm2d")},
        ),
        (
            ("model=mask_rcnn_fpn", "norm=gn", "norm.head=sn"),
            {
                "body": (53, "GroupNorm2d"),
                "fpn": (8, "GroupNorm2d"),
                "box": (4, "SwitchNorm2d"),
                "mask": (4, "SwitchNorm2d"),
            },
        ),
        (("model=mask_rcnn_fpn", "norm=frozen_bn"), {"body": (53, "FrozenBatchNorm2d")}),
        (
            ("model=faster_rcnn_fpn", "norm=frozen_bn", "norm.head=gn"),
            {"body": (53, "FrozenBatchNorm2d"), "box": (4, "GroupNorm2d")},
        ),
    ],
)
def test_layers_are_where_the_paper_has_them(
    composed: Compose, overrides: tuple[str, ...], expected: dict[str, tuple[int, str]]
) -> None:
    found = {part: Counter(names) for part, names in places(build(composed, *overrides)).items()}
    assert found == {part: Counter({name: count}) for part, (count, name) in expected.items()}


def test_stages_of_a_detectors_layers(composed: Compose) -> None:
    network = build(composed, "model=faster_rcnn_c4", "norm=sn")
    stages = Counter(position.stage for position in layer_positions(network).values())
    assert stages == {"res1": 1, "res2": 10, "res3": 13, "res4": 19, "res5": 10}


def test_initial_weights_are_detectrons_and_of_the_seed(composed: Compose) -> None:
    network = build(composed, "model=mask_rcnn_fpn_mini", "norm=gn")
    same = build(composed, "model=mask_rcnn_fpn_mini", "norm=gn").state_dict()
    assert all(torch.equal(value, same[key]) for key, value in network.state_dict().items())
    other = build(composed, "model=mask_rcnn_fpn_mini", "norm=gn", "seed=1")
    heads = network.roi_heads
    assert not torch.equal(heads.box_predictor.bbox_pred.weight,
                           other.roi_heads.box_predictor.bbox_pred.weight)  # fmt: skip
    for layer, std in (
        (heads.box_predictor.cls_score, 0.01),
        (heads.box_predictor.bbox_pred, 0.001),
        (network.rpn.head.cls_logits, 0.01),
        (heads.box_head[0][0], (2 / (64 * 9)) ** 0.5),
        (heads.mask_head[0][0], (2 / (64 * 9)) ** 0.5),
        (network.backbone.body.layer2[0].conv2, (2 / (16 * 9)) ** 0.5),
        (network.backbone.fpn.layer_blocks[0][0], (1 / (64 * 9)) ** 0.5),
        (heads.box_head[5], (1 / (64 * 49)) ** 0.5),
        (heads.mask_predictor.conv5_mask, (2 / (64 * 4)) ** 0.5),
        (heads.mask_predictor.mask_fcn_logits, (2 / 4) ** 0.5),
    ):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.15)
        assert layer.bias is None or not layer.bias.any()
    limit = heads.box_head[5].weight.abs().max().item()  # uniform, not normal
    assert limit <= (3 / (64 * 49)) ** 0.5 * 1.0001


@pytest.mark.parametrize("norm", ["bn", "sn"])
def test_frozen_stages_stand_still(composed: Compose, norm: str) -> None:
    network = build(composed, "model=faster_rcnn_fpn_mini", f"norm={norm}").train()
    network.backbone.freeze(2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    losses = network.train()(images, [target(), target()])
    sum(losses.values()).backward()
    frozen, moved = set(), set()
    for name, layer in norm_layers(network).items():
        same = torch.equal(layer.running_mean, before[f"{name}.running_mean"])
        (frozen if same else moved).add(name.split(".")[2])
    assert frozen == {"bn1", "layer1"}
    assert "layer2" in moved
    for name, parameter in network.named_parameters():
        stands_still = name.startswith(("backbone.body.conv1", "backbone.body.bn1",
                                        "backbone.body.layer1"))  # fmt: skip
        assert parameter.requires_grad != stands_still
        assert (parameter.grad is None) == stands_still, name


@pytest.mark.parametrize("norm", ["bn", "gn", "sn", "ln", "in"])
@pytest.mark.parametrize("rois", [0, 1, 1000])
def test_heads_accept_any_number_of_rois(composed: Compose, norm: str, rois: int) -> None:
    network = build(composed, "model=mask_rcnn_fpn_mini", f"norm={norm}")
    heads = network.roi_heads
    for head, side in ((heads.box_head, 7), (heads.mask_head, 14)):
        before = {key: value.clone() for key, value in head.state_dict().items()}
        x = torch.randn(rois, 64, side, side, requires_grad=True)
        y = head.train()(x)
        y.sum().backward()
        assert len(y) == rois and y.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
        if not rois:
            now = head.state_dict()  # an empty batch is counted, as by nn.BatchNorm2d
            kept = [key for key in now if not key.endswith("num_batches_tracked")]
            assert all(torch.equal(now[key], before[key]) for key in kept)
        with torch.no_grad():
            assert head.eval()(x).isfinite().all()


def test_rois_of_a_c4_head_are_averaged(composed: Compose) -> None:
    head = build(composed, "model=faster_rcnn_c4_mini", "norm=gn").roi_heads.box_head
    x = torch.randn(3, 128, 14, 14)
    assert torch.equal(head(x), head.layer4(x).mean((2, 3)))
    assert head.layer4(x).shape == (3, 256, 7, 7)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=mask_rcnn", "model.name=mask_rcnn: expected one of faster_rcnn_c4"),
        ("+model.args.widht=3", "model.args.widht: faster_rcnn_fpn_mini has no such argument"),
        ("model.args.anchors=[16]", "model.args.anchors=[16]: expected 4, one for each map"),
        ("model.args.levels=[3,2]", "model.args.levels=[3, 2]: expected ascending stages"),
        ("+model.args.num_classes=20", "model.args.num_classes: faster_rcnn_fpn_mini has no such"),
        ("+model.args.box_head=null", "model.args.box_head: faster_rcnn_fpn_mini has no such"),
        ("model.args.backbone=resnet9", "model.name=resnet9: expected"),
        ("model.args.backbone=regnetx_002", "model.args.backbone=regnetx_002: expected a ResNet"),
    ],
)
def test_a_wrong_argument_is_one_line(composed: Compose, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(composed, "model=faster_rcnn_fpn_mini", "norm=gn", override)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_torchvision_of_another_torch_is_named(tmp_path: Path) -> None:
    """As one whose library of operators does not load."""
    source = Path(torchvision.__file__).parent
    shutil.copytree(source, tmp_path / "torchvision", ignore=shutil.ignore_patterns("*.so*"))
    command = [sys.executable, str(ROOT / "train.py"), "data=digits", f"run_dir={tmp_path}/run"]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert ended.returncode == 1 and ended.stderr.startswith("error: "), ended.stderr
    assert "Install the torchvision of torch's release" in ended.stderr
    assert "Traceback" not in ended.stderr
