"""The paper's detectors: torchvision's classes around a ResNet of our own (Sec. 4.2)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from sn_imagenet.config import ExperimentConfig, ModelConfig, NormConfig
from sn_imagenet.errors import ConfigError
from sn_imagenet.models import build_model, fuse_relus, norm_layer

MODELS = ("faster_rcnn_c4", "faster_rcnn_fpn", "mask_rcnn_fpn")
# The networks of torchvision's weights for COCO, for evaluation only.
PUBLISHED = {
    "faster_rcnn_torchvision": "FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
    "mask_rcnn_torchvision": "MaskRCNN_ResNet50_FPN_Weights.COCO_V1",
}
RATIOS = (0.5, 1.0, 2.0)
# Arguments of torchvision's classes that are no options.
_SET_HERE = {"num_classes", "rpn_anchor_generator", "rpn_head", "image_mean", "image_std"}
_SET_HERE |= {"box_roi_pool", "box_head", "box_predictor"}


class Backbone(nn.Module):
    """The stages of a timm ResNet up to ``levels``, and ``fpn`` on the maps of these, by level.

    Frozen stages stay in evaluation mode, so their statistics stand still.

    Args:
        body: the ResNet.
        levels: the stages (1 to 4) whose maps are read.
        out_channels: of each resulting map.
        fpn: the feature pyramid network, or nn.Identity.
    """

    def __init__(
        self, body: nn.Module, levels: Sequence[int], out_channels: int, fpn: nn.Module
    ) -> None:
        super().__init__()
        maps = {f"layer{level}": str(index) for index, level in enumerate(levels)}
        self.body = IntermediateLayerGetter(body, maps)
        self.fpn = fpn
        self.out_channels = out_channels
        self._frozen: list[nn.Module] = []

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.fpn(self.body(x))
        return maps

    def freeze(self, stages: int) -> None:
        """Freeze the first stages for good: 1 is the stem, 2 also layer1."""
        names = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")[: stages + (stages > 0)]
        self._frozen = [self.body[name] for name in names if name in self.body]
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


def head_norm(config: ExperimentConfig) -> NormConfig | None:
    """The method of the heads: ``norm.head``, by default that of the backbone; None, that is no
    normalization, if the backbone is frozen batch norm."""
    if config.norm.head is not None:
        return NormConfig(**config.norm.head)
    return None if config.norm.name == "frozen_bn" else config.norm


def build_detector(config: ExperimentConfig, classes: int) -> FasterRCNN:
    """A detector with a normalization layer at every place where the paper has one: in the ResNet,
    after the lateral and output convolutions of the FPN, after the four convolutions of the box
    head and of the mask head; never in the RPN. C4's head is the ResNet's last stage.

    The RPN is initialized by torchvision's N(0, 0.01^2), everything else as by Detectron:
    convolutions of the ResNet and the heads Kaiming normal (fan out), those of the FPN and the
    linear layer Xavier uniform, the predictors N(0, 0.01^2) (classes) and N(0, 0.001^2) (boxes),
    biases 0.

    Args:
        config: ``model.args`` are the arguments of :func:`_c4` or :func:`_fpn` and of torchvision's
            classes. ``norm`` is that of ResNet and FPN; with frozen batch norm the FPN has none.
        classes: number of categories, without the background.

    Raises:
        ConfigError: the model or one of its arguments is unknown.
    """
    if config.model.name in PUBLISHED:
        return published_detector(config.model.name, classes)
    model, name = config.model, config.model.name.removesuffix("_mini")
    if name not in MODELS:
        names = [f"{name}{suffix}" for name in MODELS for suffix in ("", "_mini")]
        raise ConfigError(f"model.name={model.name}: expected one of {', '.join(names)}")
    builder = _c4 if name == "faster_rcnn_c4" else _fpn
    known = inspect.signature(builder).parameters.keys() | inspect.signature(FasterRCNN).parameters
    known -= {"config", "classes", "options", "kwargs"} | _SET_HERE
    if unknown := model.args.keys() - known:
        raise ConfigError(
            f"model.args.{min(unknown)}: {model.name} has no such argument; expected one of "
            f"{', '.join(sorted(known))}"
        )
    pixels: dict[str, Any] = {
        "image_mean": list(config.data.mean),
        "image_std": list(config.data.std),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            detector = builder(config, classes + 1, **pixels, **model.args)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model.args of model.name={model.name}: {error}") from error
        predictor = detector.roi_heads.box_predictor
        for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
        for kind, parameter in detector.roi_heads.named_parameters():
            if kind.endswith("bias"):
                nn.init.zeros_(parameter)
    if model.fuse_relu:
        fuse_relus(detector.roi_heads)
    return detector


def published_detector(name: str, classes: int) -> FasterRCNN:
    """The network of :data:`PUBLISHED`, with torchvision's layers."""
    norm = partial(FrozenBatchNorm2d, eps=0.0)  # as torchvision sets it for these weights
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=norm)
    return (MaskRCNN if name.startswith("mask") else FasterRCNN)(backbone, classes + 1)


def _resnet(config: ExperimentConfig, name: str) -> Any:
    model = ModelConfig(name, {}, config.model.fuse_relu)
    resnet: Any = build_model(model, config.norm, config.protocol, 0, config.seed)
    if not hasattr(resnet, "layer4"):
        raise ConfigError(f"model.args.backbone={name}: expected a ResNet of timm")
    return resnet


def _c4(
    config: ExperimentConfig, classes: int, *, backbone: str, anchors: Sequence[int], **options: Any
) -> FasterRCNN:
    """Faster R-CNN on the map of layer3.

    Args:
        backbone: a timm ResNet or a mini.
        anchors: sides in pixels of the resized image.
    """
    resnet = _resnet(config, backbone)
    channels, features = (resnet.feature_info[stage]["num_chs"] for stage in (3, 4))
    return FasterRCNN(
        Backbone(resnet, (3,), channels, nn.Identity()),
        rpn_anchor_generator=AnchorGenerator((tuple(anchors),), (RATIOS,)),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=0),
        box_head=C4Head(resnet.layer4),
        box_predictor=FastRCNNPredictor(features, classes),
        **options,
    )


def _fpn(
    config: ExperimentConfig,
    classes: int,
    *,
    backbone: str,
    anchors: Sequence[int],
    levels: Sequence[int] = (1, 2, 3, 4),
    channels: int = 256,
    fc: int = 1024,
    **options: Any,
) -> FasterRCNN:
    """Faster or Mask R-CNN with an FPN.

    Args:
        backbone: a timm ResNet or a mini.
        anchors: sides in pixels of the resized image, one for each level of the FPN.
        levels: the stages that the FPN reads, ascending.
        channels: of the FPN and of the convolutions of the heads.
        fc: width of the box head's linear layer.
    """
    if not levels or sorted({1, 2, 3, 4} & set(levels)) != list(levels):
        raise ConfigError(f"model.args.levels={list(levels)}: expected ascending stages of 1 to 4")
    if len(anchors) != len(levels) + 1:
        raise ConfigError(
            f"model.args.anchors={list(anchors)}: expected {len(levels) + 1}, one for each map of "
            f"the FPN (model.args.levels={list(levels)} and one above them)"
        )
    resnet, norm = _resnet(config, backbone), config.norm
    fpn = FeaturePyramidNetwork(
        [resnet.feature_info[level]["num_chs"] for level in levels],
        channels,
        LastLevelMaxPool(),
        None if norm.name == "frozen_bn" else norm_layer(norm),
    )
    head = head_norm(config)
    in_head = None if head is None else norm_layer(head)
    maps = [str(index) for index in range(len(levels))]
    box_head = FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [fc], in_head)
    linear = next(module for module in box_head if isinstance(module, nn.Linear))
    nn.init.kaiming_uniform_(linear.weight, a=1)  # Caffe2's XavierFill
    options |= {
        "backbone": Backbone(resnet, levels, channels, fpn),
        "rpn_anchor_generator": AnchorGenerator(
            tuple((side,) for side in anchors), (RATIOS,) * len(anchors)
        ),
        "box_roi_pool": MultiScaleRoIAlign(maps, output_size=7, sampling_ratio=2),
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(fc, classes),
    }
    if not config.model.name.startswith("mask"):
        return FasterRCNN(**options)
    return MaskRCNN(
        mask_roi_pool=MultiScaleRoIAlign(maps, output_size=14, sampling_ratio=2),
        mask_head=MaskRCNNHeads(channels, [channels] * 4, 1, norm_layer=in_head),
        mask_predictor=MaskRCNNPredictor(channels, channels, classes),
        **options,
    )
