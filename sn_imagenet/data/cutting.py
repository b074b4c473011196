"""The crops of training images: ``augment.crop`` names a function of this file.

<<<<<<<< HEAD:sn_imagenet/data/crops.py
Such a function takes the data's config and ``augment.args``; it raises a ValueError that names an
argument out of range. Its steps take the image as it was decoded (PIL in RGB, or a tensor
[3, H, W]) and give one of ``image_size`` x ``image_size`` pixels; they draw from torch's default
generator, which is seeded for each sample.
========
An augmentation draws a :class:`Cut` from an image's size alone. The pixels are cut and resized
where the image was decoded and stay as they are stored, uint8 or float; what is left of the crop
(flip, colour) travels beside them and is done for the whole batch on the device (pixels.py).
>>>>>>>> 21877b3 (Index the samples of folders, archives and Kaggle's layout):sn_imagenet/data/cutting.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from torchvision.transforms import v2

from sn_imagenet.config import AugmentConfig, DataConfig
from sn_imagenet.errors import ConfigError


@dataclass(frozen=True)
<<<<<<<< HEAD:sn_imagenet/data/crops.py
class Crop:
    """``description``: what it does, as the departures from the paper's protocol say it."""
========
class Cut:
    """How one image becomes a square of side S: cut, resize, cut again, move.
>>>>>>>> 21877b3 (Index the samples of folders, archives and Kaggle's layout):sn_imagenet/data/cutting.py

    steps: list[nn.Module]
    description: str


CROPS: dict[str, Callable[..., Crop]] = {}


def registered(crop: Callable[..., Crop]) -> Callable[..., Crop]:
    """Let ``augment.crop`` name the function."""
    CROPS[crop.__name__] = crop
    return crop


@registered
def random_resized(data: DataConfig, scale: Sequence[float], ratio: Sequence[float]) -> Crop:
    """A random rectangle, resized: ``scale`` [2] bounds its share of the image's area, ``ratio``
    [2] its width over its height.
    """
    low, high = _two_numbers("scale", scale)
    if not 0 < low <= high <= 1:
        raise ValueError(f"scale={scale}: expected 0 < low <= high <= 1")
    narrow, wide = _two_numbers("ratio", ratio)
    if not 0 < narrow <= wide:
        raise ValueError(f"ratio={ratio}: expected 0 < narrow <= wide")
    return Crop(
        [v2.RandomResizedCrop(data.image_size, scale=(low, high), ratio=(narrow, wide))],
        f"random resized crop (area {low:g}-{high:g})",
    )


<<<<<<<< HEAD:sn_imagenet/data/crops.py
@registered
def pad(data: DataConfig, padding: int) -> Crop:
    """The validation's crop, zero-padded by ``padding`` pixels and cropped back at random."""
    if not isinstance(padding, int) or padding < 0:
        raise ValueError(f"padding={padding}: expected a whole number of 0 or more pixels")
    return Crop(
        [*centre(data), v2.RandomCrop(data.image_size, padding=padding)],
        f"crop after zero-padding by {padding}",
    )


@registered
def none(data: DataConfig) -> Crop:
    """The validation's crop: nothing random."""
    return Crop(centre(data), "no crop")


def centre(data: DataConfig) -> list[nn.Module]:
    """Shorter side to ``resize_size``, centre crop of ``image_size``: images of any size come out
    alike.
    """
    return [v2.Resize(data.resize_size), v2.CenterCrop(data.image_size)]
========
def cut_exact(image: np.ndarray, crop: Cut, out: Tensor) -> None:
    """Write to ``out`` (uint8 [S, S, 3]) what Pillow's crop and bilinear resize make of ``image``
    (uint8 [H, W, 3]): the pixels of torchvision's transforms of a PIL image, to the last bit."""
    part = _boxed(image, crop.box)
    if part.shape[:2] != crop.size:
        height, width = crop.size
        resized = Image.fromarray(part).resize((width, height), Image.Resampling.BILINEAR)
        part = np.asarray(resized)
    _place(part, crop, out.numpy())


def cut_fast(image: np.ndarray, crop: Cut, out: Tensor) -> None:
    """As :func:`cut_exact`, resized by torch's vectorised uint8 kernel, whose weights are rounded
    to 16 bits: no value differs by more than 1 of 255."""
    part = torch.from_numpy(np.ascontiguousarray(_boxed(image, crop.box)))
    if part.shape[:2] != crop.size:
        part = v2.resize(part.permute(2, 0, 1), list(crop.size), antialias=True).permute(1, 2, 0)
    _place(part.numpy(), crop, out.numpy())


def cut_float(image: Tensor, crop: Cut, out: Tensor) -> None:
    """As :func:`cut_exact` for float32 ``image`` [3, H, W] and ``out`` [3, S, S]."""
    if crop.box is not None:
        top, left, height, width = crop.box
        image = image[:, top : top + height, left : left + width]
    image = v2.resize(image, list(crop.size), antialias=True)
    _place(image.permute(1, 2, 0).numpy(), crop, out.permute(1, 2, 0).numpy())
>>>>>>>> 21877b3 (Index the samples of folders, archives and Kaggle's layout):sn_imagenet/data/cutting.py


def make_crop(data: DataConfig, augment: AugmentConfig) -> Crop:
    """The crop that ``augment`` names.

    Raises:
        ConfigError: there is no such crop, or ``augment.args`` does not suit it.
    """
    if augment.crop not in CROPS:
        raise ConfigError(f"augment.crop={augment.crop}: expected one of {', '.join(CROPS)}")
    try:
        return CROPS[augment.crop](data, **augment.args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"augment.args={augment.args}: {error}") from error


<<<<<<<< HEAD:sn_imagenet/data/crops.py
def _two_numbers(name: str, values: Sequence[float]) -> tuple[float, float]:
    if not isinstance(values, list | tuple) or len(values) != 2:
        raise ValueError(f"{name}={values}: expected 2 numbers")
    low, high = (float(value) for value in values)
    return low, high
========
def _place(image: np.ndarray, crop: Cut, out: np.ndarray) -> None:
    """The square of ``image`` [h, w, 3] that ``crop`` says, into ``out`` [S, S, 3]."""
    (top, left), (down, right), side = crop.corner, crop.move, out.shape[0]
    square = image[top : top + side, left : left + side]
    if crop.move == (0, 0):
        out[:] = square
        return
    out[:] = 0
    seen = square[max(down, 0) : side + min(down, 0), max(right, 0) : side + min(right, 0)]
    out[max(-down, 0) : side - max(down, 0), max(-right, 0) : side - max(right, 0)] = seen
>>>>>>>> 21877b3 (Index the samples of folders, archives and Kaggle's layout):sn_imagenet/data/cutting.py
