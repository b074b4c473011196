"""The feature and style losses of Johnson et al. (arXiv 1603.08155, Sec. 3.2) with VGG16."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import VGG16_Weights
from torchvision.models.vgg import cfgs, make_layers

from sn_imagenet.errors import ConfigError
from sn_imagenet.runs.reading import open_to_read

# Index of each layer in torchvision's vgg16().features.
LAYERS = {"relu1_2": 3, "relu2_2": 8, "relu3_3": 15, "relu4_3": 22}
RGB = tuple[float, float, float]


class FeatureScale(NamedTuple):
    """The input that features were trained with, (pixel - mean) / std for pixels from 0 to 255, and
    the loss weights for features of that size."""

    mean: RGB
    std: RGB
    content_weight: float
    style_weight: float


SCALES = {
    # torchvision's IMAGENET1K_V1, as in pytorch/examples, fast_neural_style.
    "unit": FeatureScale((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 1e5, 1e10),
    # The original weights (torchvision's IMAGENET1K_FEATURES), as in jcjohnson/fast-neural-style.
    "pixels": FeatureScale((123.0, 117.0, 104.0), (1.0, 1.0, 1.0), 1.0, 5.0),
}


def load_features(file: str | None) -> nn.Sequential:
    """VGG16 from its input to relu4_3, from a state dict of torchvision's vgg16() or its
    ``features`` in any precision; None for torchvision's IMAGENET1K_V1.

    Raises:
        ConfigError: the weights cannot be read or downloaded, or are of another network.
    """
    layers = make_layers(cfgs["D"][:13])
    try:
        if file is None:
            state: Any = VGG16_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
        else:
            with open_to_read(Path(file).expanduser()) as opened:
                state = torch.load(opened, map_location="cpu", weights_only=True)
        prefix = "" if "0.weight" in state else "features."
        layers.load_state_dict({name: state[prefix + name] for name in layers.state_dict()})
    except Exception as error:  # of urllib, pickle, zip files and torch
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise ConfigError(
            f"task.features={file}: cannot be read as weights of VGG16 ({reason}); expected a file "
            "with features.0.weight to features.21.bias, or null to download torchvision's"
        ) from error
    return layers


def gram(features: Tensor) -> Tensor:
    """Gram matrices F F^T / (C H W), float32 [N, C, C], of features [N, C, H, W] (Eq. (3))."""
    rows = features.flatten(2).float()
    return rows @ rows.mT / rows[0].numel()


class PerceptualLoss(nn.Module):
    """The losses of single images, in float32 whatever the precision around it.

    Args:
        features: of :func:`load_features`; frozen here.
        style: pixels of the style image, [3, h, w].
        content_layer: of :data:`LAYERS`.
    """

    def __init__(
        self, features: nn.Sequential, scale: FeatureScale, style: Tensor, content_layer: str
    ) -> None:
        super().__init__()
        self.features = features.requires_grad_(False).eval()
        self.content_layer = content_layer
        self.register_buffer("mean", torch.tensor(scale.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(scale.std)[:, None, None])
        with torch.no_grad():
            for name, found in self.layers(style[None], "relu4_3").items():
                self.register_buffer(name, gram(found))

    def forward(self, output: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        """The feature loss, the mean squared difference at the content layer (Eq. (2)), and the
        style loss, the sum over layers of that of Gram matrices (Eq. (4)), each [N], of images in
        pixels, [N, 3, H, W]."""
        with torch.no_grad():
            target = self.layers(content, self.content_layer)[self.content_layer]
        layers = self.layers(output, "relu4_3")
        with torch.autocast(output.device.type, enabled=False):
            gap = layers[self.content_layer].float() - target.float()
            feature = gap.square().mean((1, 2, 3))
            grams = [gram(found) - self.get_buffer(name) for name, found in layers.items()]
            return feature, torch.stack([g.square().mean((1, 2)) for g in grams]).sum(0)

    def layers(self, images: Tensor, last: str) -> dict[str, Tensor]:
        """The activations of :data:`LAYERS` up to ``last``."""
        x = (images - self.get_buffer("mean")) / self.get_buffer("std")
        found: dict[str, Tensor] = {}
        for index, layer in enumerate(self.features[: LAYERS[last] + 1]):
            x = layer(x)
            found |= {name: x for name, at in LAYERS.items() if at == index}
        return found

    @staticmethod
    def total_variation(images: Tensor) -> Tensor:
        """Sum of squared differences between neighboring pixels, [N] (Sec. 3.2)."""
        down = (images[:, :, 1:] - images[:, :, :-1]).square().sum((1, 2, 3))
        return down + (images[..., 1:] - images[..., :-1]).square().sum((1, 2, 3))
