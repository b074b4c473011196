"""The feature and style losses of Johnson et al. (arXiv 1603.08155, Sec. 3.2) with VGG16."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VGG16_Weights
from torchvision.models.vgg import cfgs, make_layers

from sn_imagenet.errors import ConfigError

# Index of each layer in torchvision's vgg16().features.
LAYERS = {"relu1_2": 3, "relu2_2": 8, "relu3_3": 15, "relu4_3": 22}


@dataclass(frozen=True)
class FeatureScale:
    """The input that a feature network was trained with, (pixel - mean) / std for pixels from 0 to
    255, and the weights of the two losses that its features call for."""

    mean: Sequence[float]
    std: Sequence[float]
    content_weight: float
    style_weight: float


# Features, their scale and the loss weights are one choice: features of pixels are some 60 times
# larger than those of the unit scale, their Gram matrices the square of that.
SCALES = {
    # torchvision's IMAGENET1K_V1, and pytorch/examples, fast_neural_style.
    "unit": FeatureScale((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 1e5, 1e10),
    # The original weights, as torchvision's IMAGENET1K_FEATURES; jcjohnson/fast-neural-style.
    "pixels": FeatureScale((123.0, 117.0, 104.0), (1.0, 1.0, 1.0), 1.0, 5.0),
}


def load_features(file: str | None) -> nn.Sequential:
    """VGG16 from its input to relu4_3, from a file or, if None, torchvision's IMAGENET1K_V1.

    The file is a state dict of torchvision's vgg16() or of its ``features``, in any floating dtype;
    entries after conv4_3 are ignored.

    Raises:
        ConfigError: the weights cannot be read or downloaded, or are of another network.
    """
    source = f"task.features={file}" if file else "task.features=null"
    try:
        if file is None:
            state: Any = VGG16_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
        else:
            state = torch.load(Path(file).expanduser(), map_location="cpu", weights_only=True)
    except Exception as error:  # urllib, pickle and zip errors of many types
        hint = "cannot be read" if file else "torchvision's weights cannot be downloaded"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{source}: {hint} ({reason}); give task.features=FILE, a state dict of VGG16"
        ) from error
    layers = make_layers(cfgs["D"][:13])  # to conv4_3 and its ReLU
    try:
        own = {name: state.get(f"features.{name}", state.get(name)) for name in layers.state_dict()}
        missing = [name for name, tensor in own.items() if tensor is None]
        if missing:
            raise ValueError(f"no entry features.{missing[0]}")
        layers.load_state_dict(own)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{source}: not the weights of VGG16 ({reason}); expected features.0.weight to "
            "features.21.bias, as torchvision names them"
        ) from error
    return layers


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of the parameters."""
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def gram(features: Tensor) -> Tensor:
    """Gram matrices F F^T / (C H W), float32 [N, C, C], of features [N, C, H, W] (Eq. (3))."""
    rows = features.flatten(2).float()
    return rows @ rows.mT / rows[0].numel()


class PerceptualLoss(nn.Module):
    """The losses of single samples, in float32 whatever the precision around it.

    Args:
        features: of :func:`load_features`; frozen here.
        scale: what the features expect.
        style: pixels of the style image, [3, h, w].
        content_layer: of :data:`LAYERS`.
    """

    def __init__(
        self, features: nn.Sequential, scale: FeatureScale, style: Tensor, content_layer: str
    ) -> None:
        super().__init__()
        self.features = features.requires_grad_(False).eval()
        self.content_layer = content_layer
        for name in ("mean", "std"):
            table = torch.tensor(getattr(scale, name))[:, None, None]
            self.register_buffer(name, table, persistent=False)
        with torch.no_grad():
            for name, found in self._layers(style[None], "relu4_3").items():
                self.register_buffer(f"gram_{name}", gram(found), persistent=False)

    def forward(self, output: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        """(feature loss, style loss), each [N], of images in pixels, [N, 3, H, W].

        The feature loss is the mean squared difference at the content layer (Eq. (2)), the style
        loss the sum over the layers of the mean squared difference of Gram matrices (Eq. (4)).
        """
        with torch.no_grad():
            target = self._layers(content, self.content_layer)[self.content_layer]
        layers = self._layers(output, "relu4_3")
        with torch.autocast(output.device.type, enabled=False):
            difference = layers[self.content_layer].float() - target.float()
            feature = difference.square().mean((1, 2, 3))
            style = torch.zeros_like(feature)
            for name, found in layers.items():
                gap = gram(found) - self.get_buffer(f"gram_{name}")
                style = style + gap.square().mean((1, 2))
        return feature, style

    def _layers(self, images: Tensor, last: str) -> Mapping[str, Tensor]:
        """The activations of :data:`LAYERS` up to ``last``."""
        x = (images - self.get_buffer("mean")) / self.get_buffer("std")
        found: dict[str, Tensor] = {}
        for index, layer in enumerate(self.features[: LAYERS[last] + 1]):
            x = layer(x)
            found |= {name: x for name, at in LAYERS.items() if at == index}
        return found


def total_variation(images: Tensor) -> Tensor:
    """Sum of squared differences between neighboring pixels, [N] (Sec. 3.2)."""
    down = (images[:, :, 1:] - images[:, :, :-1]).square().sum((1, 2, 3))
    return down + (images[..., 1:] - images[..., :-1]).square().sum((1, 2, 3))
