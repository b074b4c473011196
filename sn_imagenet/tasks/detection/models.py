"""The paper's detectors: torchvision's classes around a ResNet of our own (Sec. 4.2)."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from sn_imagenet.config import DataConfig, ModelConfig, NormConfig, ProtocolConfig
from sn_imagenet.errors import ConfigError
from sn_imagenet.models import build_model, fuse_relus, norm_layer
from sn_imagenet.norms import MomentNorm2d

MODELS = ("faster_rcnn_c4", "faster_rcnn_fpn", "mask_rcnn_fpn")
RATIOS = (0.5, 1.0, 2.0)
NormLayer = Callable[[int], MomentNorm2d]


@dataclass(frozen=True)
class DetectorArgs:
    """``model.args`` of a detector, beside the arguments of torchvision's class.

    ``backbone``: a timm ResNet or a mini. ``anchors``: sides in pixels of the resized image; one
    per level of an FPN, all on the one map of C4. ``levels``: the stages that an FPN reads.
    ``channels``: of the FPN and the heads' convolutions. ``fc``: width of the box head's linear
    layer.
    """

    backbone: str
    anchors: tuple[int, ...]
    levels: tuple[int, ...] = (1, 2, 3, 4)
    channels: int = 256
    fc: int = 1024

    def __post_init__(self) -> None:
        levels = list(self.levels)
        if not levels or levels != sorted(set(levels) & {1, 2, 3, 4}):
            raise ConfigError(f"model.args.levels={levels}: expected ascending stages of 1 to 4")


class Backbone(nn.Module):
    """The stages of a timm ResNet up to ``levels``, by level; with ``fpn`` its maps.

    Frozen stages stay in evaluation mode, so their statistics stand still.

    Args:
        body: the ResNet, without its classifier.
        levels: the stages (1 to 4) whose maps are read.
        out_channels: of each resulting map.
        fpn: the feature pyramid network, or None.
    """

    def __init__(
        self, body: Any, levels: Sequence[int], out_channels: int, fpn: nn.Module | None
    ) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.levels = tuple(levels)
        self.out_channels = out_channels
        self._frozen: list[nn.Module] = []

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        body: Any = self.body
        x = body.maxpool(body.act1(body.bn1(body.conv1(x))))
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for level in range(1, self.levels[-1] + 1):
            x = getattr(body, f"layer{level}")(x)
            if level in self.levels:
                maps[str(len(maps))] = x
        return maps if self.fpn is None else self.fpn(maps)

    def freeze(self, stages: int) -> None:
        """Freeze the first stages for good: 1 is the stem, 2 also layer1."""
        body: Any = self.body
        parts = [[body.conv1, body.bn1], *([getattr(body, f"layer{i}")] for i in range(1, 5))]
        self._frozen = [module for part in parts[:stages] for module in part]
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


class C4Head(nn.Sequential):
    """The last stage of the ResNet on each RoI, averaged: [n, C, 14, 14] to [n, 8 C / 4]."""

    def __init__(self, layer4: nn.Module) -> None:
        super().__init__()
        self.layer4 = layer4

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer4(x)
        return y.mean(dim=(2, 3))


def build_detector(
    model: ModelConfig,
    norm: NormConfig,
    head: NormConfig | None,
    data: DataConfig,
    protocol: ProtocolConfig,
    classes: int,
    seed: int,
) -> FasterRCNN:
    """A detector with a normalization layer at every place where the paper has one: in the ResNet,
    after the lateral and output convolutions of the FPN, after the four convolutions of the box
    head and of the mask head; never in the RPN. C4's head is the ResNet's last stage.

    The RPN is initialized by torchvision's N(0, 0.01^2), everything else as by Detectron:
    convolutions of the ResNet and the heads Kaiming normal (fan out), those of the FPN and the
    linear layer Xavier uniform, the predictors N(0, 0.01^2) (classes) and N(0, 0.001^2) (boxes).

    Args:
        norm: of the ResNet and the FPN; with frozen batch norm the FPN has none.
        head: of the heads; None for none.
        classes: number of categories, without the background.

    Raises:
        ConfigError: the model or one of its arguments is unknown.
    """
    require_nms()
    name = model.name.removesuffix("_mini")
    if name not in MODELS:
        names = [f"{name}{suffix}" for name in MODELS for suffix in ("", "_mini")]
        raise ConfigError(f"model.name={model.name}: expected one of {', '.join(names)}")
    args, options = _split_args(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = _resnet(model, args, norm, protocol, seed)
        options |= {"image_mean": list(data.mean), "image_std": list(data.std)}
        if name == "faster_rcnn_c4":
            detector = _c4(body, args, options, classes)
        else:
            mask = name == "mask_rcnn_fpn"
            detector = _fpn(body, args, options, classes, norm, head, mask)
        predictor = detector.roi_heads.box_predictor
        for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
    if model.fuse_relu:
        fuse_relus(detector.roi_heads)
    return detector


def require_nms() -> None:
    """Require torchvision's compiled operators.

    Raises:
        ConfigError: the installed torchvision is for another build of torch.
    """
    try:
        _ = torch.ops.torchvision.nms
    except (AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"torchvision has no operators for torch {torch.__version__}; install the torchvision "
            "of the same release and the same index (CPU or CUDA) as torch"
        ) from error


def _split_args(model: ModelConfig) -> tuple[DetectorArgs, dict[str, Any]]:
    """``model.args`` as ours and torchvision's.

    Raises:
        ConfigError: one is unknown or missing.
    """
    ours = {field.name for field in fields(DetectorArgs)}
    theirs = {
        key
        for key in inspect.signature(FasterRCNN).parameters
        if key.startswith(("min_", "max_", "rpn_", "box_", "bbox_"))
    } | {"size_divisible"}
    if unknown := model.args.keys() - ours - theirs:
        raise ConfigError(
            f"model.args.{min(unknown)}: {model.name} has no such argument; expected one of "
            f"{', '.join(sorted(ours | theirs))}"
        )
    own: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in model.args.items()
        if key in ours
    }
    try:
        args = DetectorArgs(**own)
    except TypeError as error:
        raise ConfigError(f"model.args of {model.name}: {error}") from error
    return args, {key: value for key, value in model.args.items() if key in theirs}


def _resnet(
    model: ModelConfig, args: DetectorArgs, norm: NormConfig, protocol: ProtocolConfig, seed: int
) -> Any:
    resnet: Any = build_model(
        ModelConfig(args.backbone, {}, model.fuse_relu), norm, protocol, 0, seed
    )
    if not all(hasattr(resnet, part) for part in ("conv1", "bn1", "maxpool", "layer4")):
        raise ConfigError(f"model.args.backbone={args.backbone}: expected a ResNet of timm")
    return resnet


def _channels(body: Any, level: int) -> int:
    """Number of output channels of a stage."""
    last = getattr(body, f"layer{level}")[-1]
    conv: nn.Conv2d = last.conv3 if hasattr(last, "conv3") else last.conv2
    return conv.out_channels


def _c4(body: Any, args: DetectorArgs, options: dict[str, Any], classes: int) -> FasterRCNN:
    layer4 = body.layer4
    body.layer4 = nn.Identity()
    channels = _channels(body, 3)
    head = C4Head(layer4)
    features = layer4[-1].conv3.out_channels
    return FasterRCNN(
        Backbone(body, (3,), channels, fpn=None),
        rpn_anchor_generator=AnchorGenerator((args.anchors,), (RATIOS,)),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=0),
        box_head=head,
        box_predictor=FastRCNNPredictor(features, classes + 1),
        **options,
    )


def _fpn(
    body: Any,
    args: DetectorArgs,
    options: dict[str, Any],
    classes: int,
    norm: NormConfig,
    head: NormConfig | None,
    mask: bool,
) -> FasterRCNN:
    width, levels = args.channels, args.levels
    if len(args.anchors) != len(levels) + 1:
        raise ConfigError(
            f"model.args.anchors={list(args.anchors)}: expected {len(levels) + 1}, one for each "
            f"map of the FPN (model.args.levels={list(levels)} and one above them)"
        )
    fpn = FeaturePyramidNetwork(
        [_channels(body, level) for level in levels],
        width,
        LastLevelMaxPool(),
        None if norm.name == "frozen_bn" else norm_layer(norm),
    )
    in_head = None if head is None else norm_layer(head)
    maps = [str(index) for index in range(len(levels))]
    box_head = FastRCNNConvFCHead((width, 7, 7), [width] * 4, [args.fc], in_head)
    linear = next(module for module in box_head if isinstance(module, nn.Linear))
    nn.init.kaiming_uniform_(linear.weight, a=1)  # Caffe2's XavierFill
    nn.init.zeros_(linear.bias)
    options |= {
        "backbone": Backbone(body, levels, width, fpn),
        "rpn_anchor_generator": AnchorGenerator(
            tuple((side,) for side in args.anchors), (RATIOS,) * len(args.anchors)
        ),
        "box_roi_pool": MultiScaleRoIAlign(maps, output_size=7, sampling_ratio=2),
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(args.fc, classes + 1),
    }
    if not mask:
        return FasterRCNN(**options)
    return MaskRCNN(
        mask_roi_pool=MultiScaleRoIAlign(maps, output_size=14, sampling_ratio=2),
        mask_head=MaskRCNNHeads(width, [width] * 4, 1, norm_layer=in_head),
        mask_predictor=MaskRCNNPredictor(width, width, classes + 1),
        **options,
    )
