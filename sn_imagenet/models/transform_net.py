"""The image transformation network of Johnson et al. (arXiv 1603.08155, supplementary material)
with 15 normalization layers: c9s1-32, d64, d128, five residual blocks of 128 channels, u64, u32,
c9s1-3. Images in and out have the same size and pixels from 0 to 255; the output is not clamped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sn_imagenet.config.checks import require_one_of
from sn_imagenet.norms import MomentNorm2d
from sn_imagenet.norms.moments import Moments

TRANSFORM_NET = "transform_net"
CHOICES = {
    "padding": ("reflect", "reflect_start"),
    "upsampling": ("nearest", "transposed"),
    "output": ("tanh", "linear"),
}
LEAST_SIDE = 8  # pixels of an image's shorter side; VGG16 halves it three times
_START = 40  # pixels that "reflect_start" adds on each side, and unpadded blocks remove
_PLAIN = 1 << 20  # pixels of an image that is not large
_HALO = 8  # rows beyond a strip, more than two convolutions read; even, for those of stride 2
_STRIP = 1 << 17  # pixels of a strip


class TransformNet(nn.Module):
    """The network.

    Args:
        norm_layer: makes the normalization layer for a number of channels.
        padding: ``reflect`` at every convolution, as in pytorch/examples; or ``reflect_start``, by
            40 pixels at the input, with unpadded convolutions in the residual blocks and zeros
            elsewhere, as in Johnson's paper and code.
        upsampling: ``nearest`` by 2 before a convolution, as in pytorch/examples; or ``transposed``
            convolutions, as in Johnson's paper and code, which leave a checkerboard.
        output: ``tanh``, 150 times around the middle of the pixels, as in Johnson's code; or
            ``linear``, as in pytorch/examples, which takes many steps to leave black.

    Raises:
        ConfigError: an unknown choice.
    """

    def __init__(
        self,
        norm_layer: Callable[[int], nn.Module],
        padding: str = "reflect",
        upsampling: str = "nearest",
        output: str = "tanh",
    ) -> None:
        super().__init__()
        chosen = {"padding": padding, "upsampling": upsampling, "output": output}
        for key, value in chosen.items():
            require_one_of(f"model.args.{key}", value, CHOICES[key])
        self.output = output
        self.start = _START if padding == "reflect_start" else 0
        self.least_side = max(LEAST_SIDE, self.start + 1)  # reflection adds less than a side
        mode: Literal["zeros", "reflect"] = "zeros" if self.start else "reflect"

        def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
            sizes = (inputs, outputs, kernel, stride, kernel // 2)
            layer = nn.Conv2d(*sizes, bias=False, padding_mode=mode)
            return [layer, norm_layer(outputs), nn.ReLU()]

        def up(inputs: int, outputs: int) -> list[nn.Module]:
            if upsampling == "nearest":
                return [nn.Upsample(scale_factor=2), *conv(inputs, outputs, 3)]
            layer = nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, output_padding=1, bias=False)
            return [layer, norm_layer(outputs), nn.ReLU()]

        last = nn.Conv2d(32, 3, 9, padding=4, padding_mode=mode)
        self.parts = nn.Sequential(
            nn.Sequential(*conv(3, 32, 9), *conv(32, 64, 3, 2)),
            nn.Sequential(*conv(64, 128, 3, 2)),
            nn.Sequential(*(_Block(norm_layer, not self.start) for _ in range(5))),
            nn.Sequential(*up(128, 64)),
            nn.Sequential(*up(64, 32), last),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images float [N, 3, H, W] -> [N, 3, H, W]; sides are at least ``least_side`` pixels."""
        return self._finish(self.parts(self._pad(images)), images)

    @torch.no_grad()
    def stylize(self, image: Tensor) -> Tensor:
        """:meth:`forward` of one image [1, 3, H, W] in evaluation mode, up to rounding. Activations
        of a large image at its full size are computed in strips of rows, and never kept."""
        if image.shape[2] * image.shape[3] <= _PLAIN:
            return self(image)
        x = self._pad(image)
        for part in self.parts:
            assert isinstance(part, nn.Sequential)
            blocks = [block for block in part if isinstance(block, _Block)]
            for block in blocks:
                y = _in_strips(block.layers[3:], _in_strips(block.layers[:3], x))
                x = block.add(y, x)
            x = x if blocks else _in_strips(part, x)
        return self._finish(x, image)

    def _pad(self, images: Tensor) -> Tensor:
        return F.pad(images, (self.start,) * 4, mode="reflect") if self.start else images

    def _finish(self, x: Tensor, images: Tensor) -> Tensor:
        # Sides that are no multiple of 4 come out up to 3 pixels longer.
        x = x[..., : images.shape[2], : images.shape[3]]
        return 127.5 + 150 * torch.tanh(x) if self.output == "tanh" else x


class _Block(nn.Module):
    """conv, norm, ReLU, conv, norm, and the input, or its center if the convolutions do not pad."""

    def __init__(self, norm_layer: Callable[[int], nn.Module], padded: bool) -> None:
        super().__init__()
        self.margin = 0 if padded else 2

        def conv() -> nn.Conv2d:
            return nn.Conv2d(128, 128, 3, padding=int(padded), bias=False, padding_mode="reflect")

        self.layers = nn.Sequential(conv(), norm_layer(128), nn.ReLU(), conv(), norm_layer(128))

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.layers(x), x)

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        m = self.margin
        return y + (x[..., m:-m, m:-m] if m else x)


def _in_strips(layers: nn.Sequential, x: Tensor) -> Tensor:
    """The output of ``layers`` for one image [1, C, H, W]. What precedes a normalization layer is
    computed for its statistics, and again for what follows."""
    chain: list[Callable[[Tensor], Tensor]] = []
    for layer in layers:
        if not isinstance(layer, MomentNorm2d):
            chain.append(layer)
            continue
        pixels, sums = 0, torch.zeros(2, 1, layer.num_features, dtype=torch.float64)
        for _, _, strip in _strips(chain, x):
            rows = strip.double()
            pixels += rows.shape[2] * rows.shape[3]
            sums += torch.stack([rows.sum((2, 3)), rows.square().sum((2, 3))]).cpu()
        mean = sums[0] / pixels
        var = (sums[1] - pixels * mean**2) / (pixels - layer.instance_correction)
        tables = layer.coefficients(Moments(mean.to(x), var.to(x)))
        center, scale, shift = (table[..., None, None] for table in tables)
        chain += [partial(torch.add, -center), partial(torch.addcmul, shift, scale)]
        chain += [nn.ReLU()] if layer.relu else []
    y = x.new_empty(0)
    for top, height, strip in _strips(chain, x):
        if not top:
            y = x.new_empty(1, strip.shape[1], height, strip.shape[3])
        y[:, :, top : top + strip.shape[2]] = strip
    return y


def _strips(
    layers: Sequence[Callable[..., Tensor]], x: Tensor
) -> Iterator[tuple[int, int, Tensor]]:
    """(first row, number of all rows, output) of ``layers`` in strips of rows, top to bottom."""
    up = 2 ** sum(isinstance(layer, nn.Upsample | nn.ConvTranspose2d) for layer in layers)
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    down = math.prod(conv.stride[0] for conv in convs)
    lost = sum(conv.kernel_size[0] // 2 - int(conv.padding[0]) for conv in convs)  # on each side
    height, width = (-(-side * up // down) - 2 * lost for side in x.shape[2:])
    rows = max(_HALO, _STRIP // width // 2 * 2)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first = max(0, top * down // up - _HALO)
        strip = x[:, :, first : -(-bottom * down // up) + _HALO]
        for layer in layers:
            strip = layer(strip)
        start = top - first * up // down
        yield top, height, strip[:, :, start : start + bottom - top]
