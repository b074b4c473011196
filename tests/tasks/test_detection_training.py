"""Training a detector: against torchvision's own loop, by the protocols, and across kills."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from test_tasks_custom import check_resumed, result, rows, run
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.transforms.functional import pil_to_tensor

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.seeding import derive_seed
from sn_imagenet.distributed import Placement
from sn_imagenet.errors import UserError
from sn_imagenet.norms import norm_layers
from sn_imagenet.tasks import Clock, build_task
from sn_imagenet.tasks.detection.detect import detect_folder
from sn_imagenet.tasks.detection.saved import load_detector
from sn_imagenet.training import Stepper

Compose = Callable[..., ExperimentConfig]
ROOT = Path(__file__).parents[2]
SMALL = ("task=detection", "model=mask_rcnn_fpn_mini", "model.args.min_size=64",
         "model.args.max_size=96", "calibration.samples=4", "tracker=none",
         "protocol.detection.warmup_steps=4", "trainer.log_every=1")  # fmt: skip


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def numbers(batch: str) -> tuple[str, str]:
    """A setting without a config of its own."""
    gpus, size = batch.split("x")
    return f"batch.gpus={gpus}", f"batch.samples_per_gpu={size}"


def batch_norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels)


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(32, channels)


def torchvision_detector(masks: bool, norm: Any, classes: int) -> Any:
    """The detector of ``OURS``, of torchvision's classes alone."""
    maps = ["0", "1", "2", "3"]
    backbone = BackboneWithFPN(
        resnet18(norm_layer=norm),
        {f"layer{level + 1}": str(level) for level in range(4)},
        [64, 128, 256, 512],
        64,
        norm_layer=norm,
    )
    options: dict[str, Any] = {
        "backbone": backbone,
        "min_size": 96,
        "max_size": 160,
        "rpn_anchor_generator": AnchorGenerator(
            ((8,), (16,), (32,), (64,), (96,)), ((0.5, 1.0, 2.0),) * 5
        ),
        "rpn_post_nms_top_n_train": 100,
        "box_batch_size_per_image": 32,
        "box_roi_pool": MultiScaleRoIAlign(maps, 7, 2),
        "box_head": FastRCNNConvFCHead((64, 7, 7), [64] * 4, [128], norm),
        "box_predictor": FastRCNNPredictor(128, classes + 1),
    }
    if not masks:
        return FasterRCNN(**options)
    return MaskRCNN(
        mask_roi_pool=MultiScaleRoIAlign(maps, 14, 2),
        mask_head=MaskRCNNHeads(64, [64] * 4, 1, norm_layer=norm),
        mask_predictor=MaskRCNNPredictor(64, 64, classes + 1),
        **options,
    )


OURS = ("++model.args={backbone:resnet18,channels:64,fc:128,anchors:[8,16,32,64,96],min_size:96,"
        "max_size:160,rpn_post_nms_top_n_train:100,box_batch_size_per_image:32}")  # fmt: skip


def reference_sample(
    coco: COCO, folder: Path, image_id: int, flip: bool, masks: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """An image and its target as in torchvision's references/detection."""
    info = coco.loadImgs(image_id)[0]
    image = pil_to_tensor(Image.open(folder / info["file_name"]).convert("RGB")).double() / 255
    width, height = info["width"], info["height"]
    entries = [e for e in coco.imgToAnns[image_id] if e["iscrowd"] == 0]
    boxes = torch.tensor([e["bbox"] for e in entries], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2].clamp_(min=0, max=width)
    boxes[:, 1::2].clamp_(min=0, max=height)
    ids = sorted(coco.cats)
    target = {
        "boxes": boxes,
        "labels": torch.tensor([1 + ids.index(e["category_id"]) for e in entries]),
    }
    if masks:
        shapes = []
        for entry in entries:
            runs = entry["segmentation"]
            if isinstance(runs, list):
                decoded = coco_mask.decode(coco_mask.frPyObjects(runs, height, width))
                shapes.append(decoded.any(axis=2))
            else:
                shapes.append(coco.annToMask(entry))
        target["masks"] = torch.from_numpy(np.stack(shapes)).to(torch.uint8)
    keep = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
    target = {key: value[keep] for key, value in target.items()}
    if flip:
        image = image.flip(-1)
        target["boxes"][:, [0, 2]] = width - target["boxes"][:, [2, 0]]
        if masks:
            target["masks"] = target["masks"].flip(-1)
    return image, target


def compare_ten_steps(
    config: ExperimentConfig, network_of: Callable[[int], Any], file: Path, folder: Path
) -> None:
    """Train ten steps with our stepper and with torchvision's loop, and compare."""
    task = build_task(config)
    data: Any = task.datasets()
    ours = task.network(data)
    theirs = network_of(len(data.classes)).train()
    theirs.load_state_dict(ours.state_dict())
    gpus, size = config.batch.gpus, config.batch.samples_per_gpu
    stepper = Stepper(task, ours, config, Placement(gpus, size, replicas_per_pass=1),
                      torch.device("cpu"), Clock(100, 10))  # fmt: skip
    weights = [p for n, p in theirs.named_parameters() if p.dim() > 1 or "predictor" in n
               or "rpn" in n or ("fpn" not in n and n.endswith("5.bias"))]  # fmt: skip
    chosen = set(map(id, weights))
    others = [p for p in theirs.parameters() if id(p) not in chosen]  # gamma and beta
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0}],
        lr=config.initial_lr,
        momentum=0.9,
    )
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=4)
    milestone = torch.optim.lr_scheduler.MultiStepLR(optimizer, [7], gamma=0.1)
    coco = COCO(str(file))
    annotations, steps, epoch = data.train.annotations, 0, 0
    loader = task.batches("train", data, torch.device("cpu"))
    seen: dict[str, list[Tensor]] = {"ours": [], "theirs": []}
    while steps < 10:
        for batch in loader.epoch(epoch):
            outcome = stepper.forward_backward(batch, steps)
            stepper.optimizer_step(steps)
            seen["ours"].append(torch.tensor(outcome.loss))
            optimizer.zero_grad()
            total = torch.zeros(())
            for replica in reversed(range(gpus)):
                samples = []
                for index in batch.indices[replica::gpus]:
                    position = int(data.train.chosen[index])
                    image_id = annotations.image(position)["id"]
                    flip = derive_seed("flip", config.seed, epoch, image_id) % 2 == 1
                    samples.append(reference_sample(coco, folder, image_id, flip, task.masks))
                torch.manual_seed(derive_seed("pass", config.seed, steps, replica))
                losses = theirs([image for image, _ in samples], [t for _, t in samples])
                loss = sum(losses.values()) / gpus
                loss.backward()
                total += loss.detach()
            seen["theirs"].append(total)
            optimizer.step()
            warm_up.step()
            milestone.step()
            steps += 1
            if steps == 10:
                break
        epoch += 1
    torch.testing.assert_close(torch.stack(seen["ours"]), torch.stack(seen["theirs"]),
                               rtol=1e-9, atol=1e-9)  # fmt: skip
    expected = theirs.state_dict()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-7, atol=1e-9, msg=name)
    assert seen["ours"][9] < seen["ours"][0]


PROTOCOL = ("protocol.detection.warmup_steps=4", "protocol.detection.warmup_factor=0.1",
            "protocol.lr_milestones=[0.7]", "data.workers=0")  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("data", "part", "model", "norm", "batch"),
    [
        ("drawn", "train", "mask_rcnn_fpn", "gn", "2x2"),
        ("drawn", "train", "faster_rcnn_fpn", "gn", "2x1"),
        ("coco_small", "train2017", "mask_rcnn_fpn", "bn", "1x2"),
        ("nuclei", "train", "mask_rcnn_fpn", "bn", "1x2"),
    ],
)
def test_ten_steps_are_those_of_torchvisions_loop(
    composed: Compose, drawn: Path, real: Callable[[str], Path],
    data: str, part: str, model: str, norm: str, batch: str,
) -> None:  # fmt: skip
    root, file = drawn, drawn / "train.json"
    if data != "drawn":
        root = real(data)
        file = root / "annotations" / f"instances_{part}.json"
    parts = [f"data.{p}={root / part}" for p in ("train", "val")]
    parts += [f"data.{p}_annotations={file}" for p in ("train", "val")]
    config = composed("task=detection", f"model={model}", OURS, f"norm={norm}", *numbers(batch),
                      "data=coco_format", *parts, *PROTOCOL)  # fmt: skip
    layer, masks = {"bn": batch_norm, "gn": group_norm}[norm], model == "mask_rcnn_fpn"
    detector = partial(torchvision_detector, masks, layer)
    compare_ten_steps(config, detector, file, root / part)


def test_learning_rates_warm_up_and_drop(composed: Compose, drawn_options: tuple[str, ...]) -> None:
    config = composed(*SMALL[:-2], "protocol=setting2", "norm=gn", *drawn_options)
    task = build_task(config)
    network = task.network(task.datasets())
    (optimization,) = task.optimizations(network, Clock(100, 90_000)).values()
    rate = optimization.learning_rate
    assert rate(0) == pytest.approx(0.02 / 3) and rate(250) == pytest.approx(0.02 * 2 / 3)
    assert [rate(500), rate(59_999)] == [0.02, 0.02]
    assert [rate(60_000), rate(79_999)] == pytest.approx([0.002, 0.002])
    assert [rate(80_000), rate(89_999)] == pytest.approx([0.0002, 0.0002])
    for protocol, batch, expected in (
        ("setting1", "4x3", (120_000, [80_000], 0.01)),
        ("setting3", "8x2", (180_000, [120_000, 160_000], 0.02)),
        ("official_detection", "8x2", (180_000, [120_000, 160_000], 0.02)),
    ):
        config = composed("task=detection", f"protocol={protocol}", *numbers(batch))
        steps = config.trainer.max_steps
        drops = [round(part * steps) for part in config.protocol.lr_milestones]
        assert (steps, drops, config.initial_lr) == expected


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        # (weight decay, learning rate) of gamma, beta, lambda, biases
        ("setting2", [(0, 1), (0, 1), (1e-4, 1), (1e-4, 1)]),
        ("detectron", [(0, 1), (0, 1), (1e-4, 1), (0, 2)]),
        ("official_detection", [(0, 1), (0, 2), (0, 1), (0, 2)]),
    ],
)
def test_weight_decay_and_rate_of_each_kind_of_parameter(
    composed: Compose,
    drawn_options: tuple[str, ...],
    protocol: str,
    expected: list[tuple[float, float]],
) -> None:
    config = composed("task=detection", f"protocol={protocol}", "model=faster_rcnn_fpn_mini",
                      "norm=sn", "init=some/run", *drawn_options)  # fmt: skip
    task = build_task(config)
    network: Any = task.network(task.datasets())
    (optimization,) = task.optimizations(network, Clock(1, 1)).values()
    found = {
        id(parameter): (group["weight_decay"], group["lr_scale"])
        for group in optimization.optimizer.param_groups
        for parameter in group["params"]
    }
    layer = network.backbone.fpn.inner_blocks[0][1]
    kinds = [layer.weight, layer.bias, layer.mean_weight, network.rpn.head.bbox_pred.bias]
    assert [found[id(parameter)] for parameter in kinds] == expected
    assert found[id(network.rpn.head.bbox_pred.weight)] == (1e-4, 1)
    frozen = network.backbone.body.layer1[0]
    assert id(frozen.conv1.weight) not in found and id(frozen.bn1.weight) not in found
    trained = [p for p in network.parameters() if p.requires_grad]
    assert set(found) == set(map(id, trained))


def test_departures_from_the_paper(composed: Compose) -> None:
    fingerprint = {"train": {"images": 118_287}, "val": {"images": 5_000}}

    def items(*overrides: str) -> dict[str, tuple[str, str]]:
        task = build_task(composed("task=detection", *overrides))
        return {d["item"]: (d["paper"], d["ours"]) for d in task.departures(fingerprint)}

    assert items() == items("protocol=detectron") == {}
    assert items("model=mask_rcnn_fpn", "protocol=setting3") == {}
    assert items("model=faster_rcnn_c4", "protocol=setting1", *numbers("4x3")) == {}
    assert items("batch=8x1", "data.subset=0.1") == {
        "share of the training set": ("1.0", "0.1"),
        "setting": ("8x2", "8x1"),
        "learning rate": ("0.02", "0.01"),
    }
    found = items("model=mask_rcnn_fpn")
    assert found == {
        "steps": ("180000", "90000"),
        "learning rate drops at steps": ("[120000, 160000]", "[60000, 80000]"),
    }
    found = items("model=mask_rcnn_fpn_mini", "protocol.detection.steps=90")
    assert found["model"] == ("mask_rcnn_fpn", "mask_rcnn_fpn_mini")
    assert found["steps"] == ("180000", "90") and found["shorter side"] == ("800", "256")
    assert found["learning rate drops at steps"] == ("[120000, 160000]", "[60, 80]")


def test_the_heads_statistics_count_if_they_alone_store_some(composed: Compose) -> None:
    config = composed("task=detection", "norm=frozen_bn", "norm.head=sn", "init=x")
    assert config.norm.test_statistics == "batch_average"
    assert config.run_dir.endswith(
        "coco+detection/faster_rcnn_fpn-pretrained/frozen_bn+sn/8x2/seed0"
    )
    assert composed("task=detection", "norm=bn", "norm.head=sn").norm.test_statistics == (
        "moving_average"
    )


@pytest.fixture(scope="module")
def command(drawn_options: tuple[str, ...]) -> tuple[str, ...]:
    """Eight steps of (2,2), three per epoch, validated after steps 4 and 8."""
    return ("train.py", *SMALL, *drawn_options, "norm=sn", "batch.gpus=2", "trainer.max_steps=8",
            "trainer.validate_every=4")  # fmt: skip


@pytest.fixture(scope="module")
def finished(command: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    run(ROOT / "configs", *command, f"run_dir={run_dir}")
    return run_dir


@pytest.mark.slow
def test_a_run_is_evaluated_with_both_statistics(finished: Path) -> None:
    record = result(finished)
    assert record["status"] == "finished" and record["score"]["key"] == "ap"
    statistics = [evaluation["statistics"] for evaluation in record["evaluations"]]
    assert statistics == ["moving_average", "batch_average"]
    assert record["evaluations"][1]["calibration"]["samples_per_replica"] == 2
    assert {"ap", "ap50", "ap_s", "mask_ap"} <= record["evaluations"][0].keys()
    train_rows = [row for row in rows(finished) if row["kind"] == "train"]
    assert len(train_rows) == 8
    parts = [value for name, value in train_rows[0].items() if name.startswith("loss_")]
    assert len(parts) == 5 and train_rows[0]["loss"] == pytest.approx(sum(parts), rel=1e-6)
    assert [row["step"] for row in rows(finished) if "val" in row] == [4, 8]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_resumes_bit_for_bit(
    command: tuple[str, ...], finished: Path, tmp_path: Path, workers: int
) -> None:
    words = (*command, f"data.workers={workers}")
    check_resumed(finished, (2, 4, 7), tmp_path / "run", ROOT / "configs", *words)
    evaluations = [
        [{k: e[k] for k in ("ap", "mask_ap", "seen")} for e in result(folder)["evaluations"]]
        for folder in (tmp_path / "run", finished)
    ]
    assert evaluations[0] == evaluations[1]


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume(
    command: tuple[str, ...], finished: Path, tmp_path: Path
) -> None:
    whole, configs = tmp_path / "whole", ROOT / "configs"
    run(configs, *command, f"run_dir={whole}", processes=2)
    check_resumed(whole, (3,), tmp_path / "killed", configs, *command, processes=2)
    together, alone = (
        [row["loss"] for row in rows(folder) if row["kind"] == "train"]
        for folder in (whole, finished)
    )
    assert together[0] == pytest.approx(alone[0], rel=1e-6)
    assert together[:3] == pytest.approx(alone[:3], rel=1e-3)  # rounding differences grow


@pytest.mark.slow
def test_a_run_is_evaluated_again_with_its_files(command: tuple[str, ...], finished: Path) -> None:
    run(ROOT / "configs", "evaluate.py", f"run={finished}", "per_class=categories.csv",
        "+artifacts.detections=found.json")  # fmt: skip
    evaluations = result(finished)["evaluations"]
    assert evaluations[2]["ap"] == evaluations[0]["ap"]
    table = (finished / "categories.csv").read_text().splitlines()
    assert table[0].startswith("category,objects,moving_average ap,") and len(table) == 3
    found = [finished / "found_moving_average.json", finished / "found_batch_average_4_seed0.json"]
    for file in found:
        entries = json.loads(file.read_text())
        assert all({"image_id", "category_id", "bbox", "score"} <= e.keys() for e in entries)
    # Two processes find the same, each image once.
    alone = [file.read_bytes() for file in found]
    run(ROOT / "configs", "evaluate.py", f"run={finished}", "+artifacts.detections=found.json",
        processes=2)  # fmt: skip
    assert [file.read_bytes() for file in found] == alone
    evaluations = result(finished)["evaluations"]
    assert [e["seen"] for e in evaluations] == [4] * 6
    assert evaluations[4]["ap"] == evaluations[0]["ap"]


@pytest.mark.slow
def test_objects_are_found_in_a_folder(finished: Path, drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn / "val", tmp_path / "val")
    turned = Image.open(tmp_path / "val" / "1.png")
    turned.getexif()[0x0112] = 6  # as in training, ignored where there are annotations
    turned.save(tmp_path / "val" / "1.png", exif=turned.getexif())
    words = ("--run", finished, "--images", tmp_path / "val", "--score", "0.01")
    run(ROOT / "configs", "scripts/detect.py", *words, "--out", tmp_path / "out",
        "--annotations", drawn / "val.json")  # fmt: skip
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert sorted(found) == ["0.png", "1.png", "2.png", "3.png"]
    entries = [entry for entries in found.values() for entry in entries]
    assert all(entry["category"] in ("square", "round") for entry in entries)
    pictures = [Image.open(tmp_path / "out" / name) for name in ("1.png", "content/1.png")]
    assert [picture.size for picture in pictures] == [(48, 64), (48, 64)]
    assert pictures[0].tobytes() != pictures[1].tobytes()
    output = run(ROOT / "configs", "scripts/detect.py", "--run", finished, "--images", tmp_path,
                 "--out", tmp_path / "none", code=0)  # fmt: skip
    assert "detections.json" in output
    output = run(ROOT / "configs", "scripts/detect.py", "--run", tmp_path, "--images", tmp_path,
                 "--out", tmp_path / "none", code=2)  # fmt: skip
    assert "no trained network there" in output and "Traceback" not in output
    for suffix in (".jpg", ".png"):
        Image.new("RGB", (32, 32)).save((tmp_path / "twice").with_suffix(suffix))
    with pytest.raises(UserError, match="two images differ only in their suffix"):
        list(detect_folder(finished, tmp_path, tmp_path / "none"))


@pytest.mark.slow
def test_an_export_finds_the_same(finished: Path, drawn: Path, tmp_path: Path) -> None:
    run(ROOT / "configs", "scripts/export.py", finished, "--out", tmp_path / "export")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "export/README.md").read_text(), re.S)
    scope: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(tmp_path / "export")), scope)
    assert scope["saved"].classes == ("square", "round") and not scope["network"].training
    assert str(drawn) not in (tmp_path / "export" / "config.json").read_text()
    expected, saved = load_detector(finished)
    assert saved.statistics == scope["saved"].statistics == "batch_average"
    images = [torch.rand(3, 48, 64)]
    with torch.no_grad():
        found, theirs = scope["network"](images)[0], expected(images)[0]
    assert all(torch.equal(found[key], theirs[key]) for key in theirs)
    assert list(detect_folder(tmp_path / "export", drawn / "val", tmp_path / "out"))


def test_calibration_leaves_frozen_statistics_alone(
    composed: Compose, drawn_options: tuple[str, ...]
) -> None:
    from sn_imagenet.evaluation import calibrate
    from sn_imagenet.tasks import prepare

    config = composed(*SMALL, *drawn_options, "norm=bn", "init=some/run", "batch.gpus=2")
    prepared = prepare(config)
    before = {k: v.clone() for k, v in prepared.network.state_dict().items()}
    ((first, record),) = calibrate(prepared)
    ((second, _),) = calibrate(prepared)
    assert record["samples_used"] == 4
    layers = norm_layers(prepared.network)
    for name, (mean, var) in first.items():
        assert torch.equal(mean, second[name][0]) and torch.equal(var, second[name][1])
        stored = torch.equal(mean.float(), layers[name].running_mean)
        assert stored == name.startswith(("backbone.body.bn1", "backbone.body.layer1")), name
    after = prepared.network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not prepared.network.training
