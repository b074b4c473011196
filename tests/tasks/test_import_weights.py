"""Imported weights become runs that compute the same logits as the original network."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from authors_layer import authors_checkpoint, authors_layer
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from sn_imagenet.config import ExperimentConfig, from_dict
from sn_imagenet.errors import UserError
from sn_imagenet.models import load
from sn_imagenet.models.published import find_published
from sn_imagenet.norms import norm_layers
from sn_imagenet.runs import NOT_EVALUATED, RunDirectory, read_run
from sn_imagenet.tasks.classification.departures import departures
from sn_imagenet.tasks.detection.saved import load_detector
from sn_imagenet.tasks.import_weights import _read_weights, import_official, import_published

Compose = Callable[..., ExperimentConfig]


def checkpoint_of_resnet18(bn: bool) -> dict[str, Any]:
    return authors_checkpoint(timm.create_model("resnet18", num_classes=7).state_dict(), bn)


def authors_logits(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """ResNet-18 (He et al.) in float64 with the authors' layer after each convolution."""
    weights = {name.removeprefix("module."): value.double() for name, value in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        p = {k.rpartition(".")[2]: v for k, v in weights.items() if k.startswith(f"{name}.")}
        stored = None
        if "running_mean" in p:
            stored = p["running_mean"].flatten(), p["running_var"].flatten()
        scale, shift = p["weight"].flatten(), p["bias"].flatten()
        return authors_layer(x, scale, shift, p["mean_weight"], p["var_weight"], stored)

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    x = torch.relu(norm(conv(images.double(), "conv1", 2), "sn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in range(1, 5):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = torch.relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.sn1"))
            y = norm(conv(y, f"{name}.conv2"), f"{name}.sn2")
            if stride == 2:
                x = norm(conv(x, f"{name}.downsample.0", 2), f"{name}.downsample.1")
            x = torch.relu(y + x)
    return F.linear(x.mean((2, 3)), weights["fc.weight"], weights["fc.bias"])


@pytest.mark.parametrize("bn", [True, False], ids=["with bn", "using_bn false"])
def test_the_authors_checkpoint_gives_the_authors_logits(
    composed: Compose, tmp_path: Path, bn: bool
) -> None:
    checkpoint = checkpoint_of_resnet18(bn)
    torch.save(checkpoint, tmp_path / "sn.pth")
    batch = "batch=8x32" if bn else "batch=8x1"
    config = composed(
        "norm=sn", batch, "model.name=resnet18", "data=digits", f"run_dir={tmp_path / 'run'}"
    )
    path = import_official(tmp_path / "sn.pth", config)
    network = load(path)
    omega = ("in", "ln", "bn") if bn else ("in", "ln")
    assert all(layer.omega == omega for layer in norm_layers(network).values())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = network.double()(images.double())
    expected = authors_logits(checkpoint["state_dict"], images)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    run = read_run(path)
    assert (run.cell.norm, run.state) == ("sn (imported)", NOT_EVALUATED)
    config = from_dict(RunDirectory(path).read_config())
    items = {item["item"]: item["ours"] for item in departures(config, {})}
    assert re.fullmatch(r"the authors' sn\.pth, sha256 [0-9a-f]{16}", items["weights"])
    assert "instance_correction" in items["normalization arguments"]
    assert not items.keys() & {"epochs", "dropout", "initial learning rate"}


@pytest.mark.parametrize(
    ("name", "build", "norm", "size", "resize", "interpolation"),
    [
        ("ResNet18_Weights.IMAGENET1K_V1", torchvision.models.resnet18, "bn", 224, 256, "bilinear"),
        ("resnet18.a1_in1k", lambda: timm.create_model("resnet18"), "bn", 288, 288, "bicubic"),
        (
            "resnet50_gn.a1h_in1k",
            lambda: timm.create_model("resnet50_gn"),
            "gn",
            288,
            303,
            "bicubic",
        ),
    ],
    ids=["torchvision", "timm", "timm, gn"],
)
def test_published_weights_give_the_original_logits(
    composed: Compose,
    tmp_path: Path,
    name: str,
    build: Callable[[], nn.Module],
    norm: str,
    size: int,
    resize: int,
    interpolation: str,
) -> None:
    torch.manual_seed(0)
    original = build().eval()
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    config = composed(f"norm={norm}", f"run_dir={tmp_path / 'run'}")
    path = import_published(tmp_path / "weights.pth", name, config)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(load(path)(images), original(images), rtol=1e-4, atol=1e-4)
    data = from_dict(RunDirectory(path).read_config()).data
    assert (data.image_size, data.resize_size) == (size, resize)
    assert (data.interpolation, data.source) == (interpolation, "imagenet")
    assert read_run(path).cell.norm == f"{norm} (imported)"


@pytest.mark.slow
def test_published_detectors_find_the_same(composed: Compose, tmp_path: Path) -> None:
    """The imported network has COCO's 80 categories, torchvision's own 91."""
    name = "MaskRCNN_ResNet50_FPN_Weights.COCO_V1"
    torch.manual_seed(0)
    original = MaskRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None), 91).eval()
    overwrite_eps(original, 0.0)
    file = tmp_path / "weights.pth"
    torch.save(original.state_dict(), file)
    words = ("task=detection", "model=mask_rcnn_fpn", "data.root=x", f"run_dir={tmp_path / 'run'}")
    config = composed(*words)
    with pytest.raises(UserError, match="does not hold FasterRCNN_ResNet50_FPN_Weights"):
        import_published(file, "FasterRCNN_ResNet50_FPN_Weights.COCO_V1", config)
    path = import_published(file, name, config)
    network, saved = load_detector(path)
    labels = torchvision.models.get_weight(name).meta["categories"]
    kept = [number for number, label in enumerate(labels) if label != "N/A"]
    assert list(saved.classes) == [labels[number] for number in kept[1:]] and len(kept) == 81
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = (_predictions(detector, image) for detector in (network, original))
    for mine, all_classes in zip(ours, theirs, strict=True):
        assert all_classes.abs().max() > 0
        torch.testing.assert_close(mine, all_classes[:, kept])


def _predictions(network: Any, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class logits, box offsets and mask logits of two RoIs by class."""
    heads, features = network.roi_heads, network.backbone(image)
    where = (features, [torch.tensor([[4.0, 4, 40, 40], [10, 0, 60, 60]])], [(64, 96)])
    logits, boxes = heads.box_predictor(heads.box_head(heads.box_roi_pool(*where)))
    masks = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(*where)))
    return logits, boxes.unflatten(1, (-1, 4)), masks


def test_torchvisions_v2_weights_resize_to_232() -> None:
    for version, size in (("V1", 256), ("V2", 232)):
        published = find_published(f"ResNet50_Weights.IMAGENET1K_{version}")
        assert published.preprocessing["resize_size"] == size


def test_weights_that_do_not_fit_are_an_error(composed: Compose, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    run = f"run_dir={tmp_path / 'run'}"
    bn, sn = (composed(f"norm={norm}", "data=digits", run) for norm in ("bn", "sn"))
    with pytest.raises(UserError, match="cannot be read"):
        import_official(file, sn)
    torch.save(timm.create_model("resnet18").state_dict(), file)
    with pytest.raises(UserError, match=r"it has no entry sn1\.mean_weight"):
        import_official(file, sn)
    with pytest.raises(UserError, match="not those of model"):
        import_published(file, "resnet50.tv_in1k", bn)
    with pytest.raises(UserError, match="give norm=bn"):
        import_published(file, "resnet18.tv_in1k", sn)
    with pytest.raises(
        UserError, match=r"no weights resnet18\.tv_in1: did you mean resnet18\.tv_in1k"
    ):
        import_published(file, "resnet18.tv_in1", bn)
    path = import_published(file, "resnet18.tv_in1k", bn)
    with pytest.raises(UserError, match="already holds a run"):
        import_published(file, "resnet18.tv_in1k", bn)
    assert RunDirectory(path).final.exists()
    torch.save({"state_dict": checkpoint_of_resnet18(True)["state_dict"], "epoch": 1}, file)
    with pytest.raises(UserError, match=r"the authors' weights\.pth.*not those of model\.name"):
        import_official(file, composed("norm=sn", f"run_dir={tmp_path / 'other'}"))


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "state_dict": lambda w: {"epoch": 3, "arch": "resnet18", "state_dict": w},
    "model": lambda w: {"model": w, "optimizer": {}},
    "module": lambda w: {"state_dict": {f"module.{name}": value for name, value in w.items()}},
    "compiled": lambda w: {f"_orig_mod.module.{name}": value for name, value in w.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_training_checkpoint_of_others_is_read(wrapping: str, tmp_path: Path) -> None:
    weights = {"bn1.running_mean": torch.ones(3), "bn1.num_batches_tracked": torch.tensor(2)}
    torch.save(WRAPPINGS[wrapping](weights), tmp_path / "file.pth")
    assert _read_weights(tmp_path / "file.pth").keys() == weights.keys()


def test_what_holds_no_weights_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file.pth"
    contents = {
        "a page": b"<html>404</html>",
        "cut": None,
        "a folder": None,
        "no weights": {"lr": 0.1},
        "NaN": {"fc.weight": torch.full((2, 2), torch.nan)},
    }
    for kind, content in contents.items():
        if kind == "cut":
            torch.save({"fc.weight": torch.ones(999)}, file)
            file.write_bytes(file.read_bytes()[:2000])
        elif kind == "a folder":
            file.unlink()
            file.mkdir()
        elif isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file = tmp_path / f"{kind}.pth"
            torch.save(content, file)
        reason = {"NaN": "fc.weight has values that are not finite", "no weights": "holds a dict"}
        with pytest.raises(UserError, match=reason.get(kind, "cannot be read")) as error:
            _read_weights(file)
        assert "WeightsUnpickler" not in str(error.value) and "PytorchStreamReader" not in str(
            error.value
        )
    for suffix in (".pth", ".safetensors"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
        with pytest.raises(UserError, match=r"cannot be read: .*not a regular file"):
            _read_weights(tmp_path / f"pipe{suffix}")
