"""Apply a trained network to a folder of images, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sn_imagenet.data.sources.images import list_images, png_targets, read_image, write_png
from sn_imagenet.distributed import choose_device
from sn_imagenet.errors import UserError
from sn_imagenet.models import load
from sn_imagenet.models.transform_net import TransformNet
from sn_imagenet.runs import RunDirectory


def read_resized(path: Path, longer_side: int | None, least: int) -> np.ndarray:
    """The image of a file, uint8 [H, W, 3], the longer side resized to ``longer_side`` if given
    (bicubic).

    Raises:
        UserError: it cannot be read, or a side has fewer than ``least`` pixels.
    """
    pixels = read_image(path)
    if longer_side is not None:
        scale = longer_side / max(pixels.shape)
        height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.array(resized)
    height, width, _ = pixels.shape
    if min(height, width) < least:
        raise UserError(
            f"{path}: {width} x {height} pixels at the size asked for; expected at least {least}"
        )
    return pixels


def stylize_folder(run: Path, images: Path, out: Path | None, size: int | None) -> Iterator[Path]:
    """Stylize the images in ``images`` and below with the network of a run or an export, and yield
    the files as they are written: PNG, clamped to 0..255, under the image's relative path.

    Args:
        out: None for the folder ``stylized`` of the run, where the content images (``content/``)
            and the style (``style.png``) are written too, for Fig. 9.
        size: the longer side of the images in pixels; None for their own.

    Raises:
        UserError: the run is not one of stylization, or an image cannot be read or is too small.
    """
    network = load(run)
    if not isinstance(network, TransformNet):
        raise UserError(f"--run {run}: expected a run of task=stylization")
    device, least = choose_device("auto"), network.least_side
    network = network.to(device)
    folder = run / "stylized" if out is None else out
    targets = png_targets(list_images(images, "--images").names)
    if out is None:
        style = Path(RunDirectory(run).read_config()["task"]["style"]).expanduser()
        if not style.is_file():
            raise UserError(f"{style}, the run's style, is missing: restore it, or use --out DIR")
        yield write_png(folder / "style.png", read_resized(style, size, 1))
    for name, target in targets.items():
        content = read_resized(images / name, size, least)
        if out is None:
            write_png(folder / "content" / target, content)
        pixels = torch.from_numpy(content).to(device).permute(2, 0, 1)[None].float()
        stylized = network.stylize(pixels)[0].clamp_(0, 255).byte()
        yield write_png(folder / target, stylized.permute(1, 2, 0).cpu().numpy())
