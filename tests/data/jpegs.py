"""Small JPEG files of noise."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def jpeg(seed: int, mode: str = "RGB", size: tuple[int, int] = (20, 14)) -> bytes:
    channels = {"L": (), "RGB": (3,), "CMYK": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8), mode).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
