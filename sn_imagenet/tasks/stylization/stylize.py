"""Apply a trained network to a folder of images, one at a time."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sn_imagenet.data.sources.images import list_images, read_image
from sn_imagenet.distributed import choose_device
from sn_imagenet.errors import UserError
from sn_imagenet.models.saved import read_saved
from sn_imagenet.models.transform_net import LEAST_SIDE, TransformNet
from sn_imagenet.runs import RunDirectory, write_atomically
from sn_imagenet.runs.reading import mapping

FOLDER = "stylized"  # in the run directory


def resized(pixels: np.ndarray, longer_side: int | None) -> np.ndarray:
    """``pixels`` uint8 [H, W, 3], the longer side resized to ``longer_side`` if given (bicubic)."""
    height, width = pixels.shape[:2]
    if longer_side in (None, max(height, width)):
        return pixels
    scale = longer_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def stylize_folder(
    run: Path, images: Path, out: Path | None, size: int | None, statistics: str | None
) -> Iterator[Path]:
    """Stylize the images in ``images`` and below with a run's or an export's network. Each is
    written as PNG, clamped to 0..255, under its relative path in ``out``.

    Args:
        out: None for the folder ``stylized`` of the run, where the content images (``content/``)
            and the style (``style.png``) are written too, for Fig. 9.
        size: the longer side of the images in pixels; None for their own.
        statistics: of BN, see :func:`~sn_imagenet.models.load`; None for the method's.

    Yields:
        The files, as they are written.

    Raises:
        UserError: the run is not one of stylization, or an image cannot be read or is too small.
    """
    if size is not None and size < LEAST_SIDE:
        raise UserError(f"--size {size}: expected at least {LEAST_SIDE} pixels")
    network = read_saved(run, statistics).network
    if not isinstance(network, TransformNet):
        raise UserError(f"--run {run}: expected a run of task=stylization")
    device = choose_device("auto")
    network = network.to(device)
    found = list_images(images, "--images")
    folder = run / FOLDER if out is None else out
    stems = Counter(str(Path(name).with_suffix("")) for name in found.names)
    for name in found.names:
        content = resized(read_image(images / name), size)
        if min(content.shape[:2]) < network.least_side:
            raise UserError(
                f"{images / name}: {content.shape[1]} x {content.shape[0]} pixels; expected sides "
                f"of at least {network.least_side}"
            )
        stem = str(Path(name).with_suffix(""))
        target = f"{stem if stems[stem] == 1 else name}.png"
        if out is None:
            yield _write(folder / "content" / target, content)
        pixels = torch.from_numpy(content).to(device).permute(2, 0, 1)[None].float()
        stylized = network.stylize(pixels)[0].clamp_(0, 255).byte()
        yield _write(folder / target, stylized.permute(1, 2, 0).cpu().numpy())
    style = mapping(RunDirectory(run).read_config().get("task")).get("style") if out is None else ""
    if style and Path(style).expanduser().is_file():
        yield _write(folder / "style.png", resized(read_image(Path(style).expanduser()), size))


def _write(path: Path, pixels: np.ndarray) -> Path:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return write_atomically(path, buffer.getvalue(), "--out")
