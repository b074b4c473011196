"""The image transformation network of Johnson et al. (arXiv 1603.08155, supplementary material)
with 15 normalization layers: c9s1-32, d64, d128, five residual blocks of 128 channels, u64, u32,
c9s1-3. Images in and out have the same size and pixels from 0 to 255; the output is not clamped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sn_imagenet.errors import ConfigError
from sn_imagenet.norms import MomentNorm2d
from sn_imagenet.norms.moments import Moments

TRANSFORM_NET = "transform_net"
CHOICES = {"padding": ("reflect", "reflect_start"), "upsampling": ("nearest", "transposed")}
LEAST_SIDE = 8  # pixels of an image's shorter side; VGG16 halves it three times
_START = 40  # pixels that "reflect_start" adds on each side, and unpadded blocks remove
_HALO = 16  # rows beyond a strip, more than any convolution reads; even, for those of stride 2
_STRIP = 1 << 19  # pixels of a strip


class TransformNet(nn.Module):
    """The network.

    Args:
        norm_layer: makes the normalization layer for a number of channels.
        padding: ``reflect`` at every convolution, as in pytorch/examples; or ``reflect_start``, by
            40 pixels at the input, with unpadded convolutions in the residual blocks and zeros
            elsewhere, as in Johnson's paper and code.
        upsampling: ``nearest`` by 2 before a convolution, as in pytorch/examples; or ``transposed``
            convolutions, as in Johnson's paper and code, which leave a checkerboard.

    Raises:
        ConfigError: an unknown ``padding`` or ``upsampling``.
    """

    def __init__(
        self,
        norm_layer: Callable[[int], nn.Module],
        padding: str = "reflect",
        upsampling: str = "nearest",
    ) -> None:
        super().__init__()
        for key, value in (("padding", padding), ("upsampling", upsampling)):
            if value not in CHOICES[key]:
                known = ", ".join(CHOICES[key])
                raise ConfigError(f"model.args.{key}={value}: expected one of {known}")
        self.start = _START if padding == "reflect_start" else 0
        self.least_side = max(LEAST_SIDE, self.start + 1)  # reflection adds less than a side
        mode: Literal["zeros", "reflect"] = "zeros" if self.start else "reflect"

        def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
            layer = nn.Conv2d(
                inputs, outputs, kernel, stride, kernel // 2, bias=False, padding_mode=mode
            )
            return nn.Sequential(layer, norm_layer(outputs), nn.ReLU())

        def up(inputs: int, outputs: int) -> nn.Sequential:
            if upsampling == "nearest":
                return nn.Sequential(nn.Upsample(scale_factor=2), *conv(inputs, outputs, 3))
            layer = nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, output_padding=1, bias=False)
            return nn.Sequential(layer, norm_layer(outputs), nn.ReLU())

        self.down = nn.Sequential(conv(3, 32, 9), conv(32, 64, 3, 2), conv(64, 128, 3, 2))
        self.blocks = nn.Sequential(*(_Block(norm_layer, not self.start) for _ in range(5)))
        last = nn.Conv2d(32, 3, 9, padding=4, padding_mode=mode)
        self.up = nn.Sequential(up(128, 64), up(64, 32), nn.Sequential(last))

    def forward(self, images: Tensor) -> Tensor:
        """Images float [N, 3, H, W] -> [N, 3, H, W]; sides are at least ``least_side`` pixels."""
        return self._crop(self.up(self.blocks(self.down(self._pad(images)))), images)

    @torch.no_grad()
    def stylize(self, image: Tensor) -> Tensor:
        """:meth:`forward` of one image [1, 3, H, W] in evaluation mode, up to rounding, with the
        large activations computed in strips of rows and normalized in place: 4096 x 4096 pixels
        take less than 4 GB."""
        x = self._pad(image)
        layers: Any
        for layers in self.down:
            x = _in_strips(layers, x)
        x = self.blocks(x)
        for layers in self.up:
            x = _in_strips(layers, x)
        return self._crop(x, image)

    def _pad(self, images: Tensor) -> Tensor:
        return F.pad(images, (self.start,) * 4, mode="reflect") if self.start else images

    @staticmethod
    def _crop(output: Tensor, images: Tensor) -> Tensor:
        # Sides that are no multiple of 4 come out up to 3 pixels longer.
        return output[..., : images.shape[2], : images.shape[3]]


class _Block(nn.Module):
    """conv, norm, ReLU, conv, norm, and the input, or its center if the convolutions do not pad."""

    def __init__(self, norm_layer: Callable[[int], nn.Module], padded: bool) -> None:
        super().__init__()
        self.margin = 0 if padded else 2

        def conv() -> nn.Conv2d:
            return nn.Conv2d(128, 128, 3, padding=int(padded), bias=False, padding_mode="reflect")

        self.layers = nn.Sequential(conv(), norm_layer(128), nn.ReLU(), conv(), norm_layer(128))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        m = self.margin
        return y + (x[..., m:-m, m:-m] if m else x)


def _in_strips(layers: nn.Sequential, x: Tensor) -> Tensor:
    """``layers(x)`` of one image [1, C, H, W]: a convolution, perhaps after upsampling, and perhaps
    a normalization layer and a ReLU."""
    convolve: Any
    count = next((i for i, m in enumerate(layers) if isinstance(m, MomentNorm2d)), len(layers))
    convolve, rest = layers[:count], layers[count:]
    grows = any(isinstance(m, nn.Upsample | nn.ConvTranspose2d) for m in convolve)
    up, down = 2 if grows else 1, 2 if not grows and convolve[-1].stride != (1, 1) else 1
    height, width = (-(-side * up // down) for side in x.shape[2:])
    y = x.new_empty(1, convolve[-1].out_channels, height, width)
    rows = max(_HALO, _STRIP // width // 2 * 2)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first = max(0, top * down // up - _HALO)
        strip = convolve(x[:, :, first : -(-bottom * down // up) + _HALO])
        start = top - first * up // down
        y[:, :, top:bottom] = strip[:, :, start : start + bottom - top]
    return _normalize_in_place(rest, y) if len(rest) else y


def _normalize_in_place(layers: nn.Sequential, x: Tensor) -> Tensor:
    """``layers(x)``, a normalization layer and a ReLU, in the memory of ``x``."""
    norm = layers[0]
    assert isinstance(norm, MomentNorm2d)
    if type(norm).forward is not MomentNorm2d.forward:
        y: Tensor = layers(x)
        return y
    var, mean = torch.var_mean(x, (2, 3), correction=norm.instance_correction)
    center, scale, shift = norm.coefficients(Moments(mean, var))
    for table, operation in ((center, x.sub_), (scale, x.mul_), (shift, x.add_)):
        operation(table[:, :, None, None])
    return F.relu_(x)
