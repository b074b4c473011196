"""Decode image files to the same pixels as Pillow, in less time."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import simplejpeg
from PIL import Image

from sn_imagenet.data.jpeg import decode_first_rows

# Pillow warns above this many pixels. A file of a few kB may claim billions (a "bomb").
MAX_PIXELS = 89_478_485
_JPEG = b"\xff\xd8\xff"
# Not CMYK and YCCK, which Pillow converts in its own way.
_SIMPLEJPEG_COLORS = ("YCbCr", "RGB", "Gray")


class UndecodableError(ValueError):
    """The bytes are not a complete image. The message gives the reason, as a clause."""


def decode(data: bytes, rows: int | None = None) -> np.ndarray:
    """The image as RGB, uint8 [H, W, 3], bit-identical to Pillow's
    ``Image.open(...).convert("RGB")``. Like torchvision's ImageFolder, ignores EXIF orientation.

    ``rows``: how many rows from the top are needed. The result may end there, and damage below
    them may go unnoticed, but a truncated file does not.

    simplejpeg decodes JPEGs in grayscale, YCbCr and RGB. Pillow decodes everything else: PNG or
    CMYK files that are named .JPEG, and JPEGs for which libjpeg gives a warning.

    Raises:
        UndecodableError: not an image, truncated, more than ``MAX_PIXELS``, or a channel of
            integers of more than 8 bits or floats.
    """
    header = _jpeg_header(data)
    if header is not None and header[2] in _SIMPLEJPEG_COLORS:
        if rows is not None and (top := decode_first_rows(data, rows)) is not None:
            return top
        with suppress(ValueError):  # a mere warning of libjpeg; Pillow decides whether it is one
            return simplejpeg.decode_jpeg(data, "RGB")
    return _decode_with_pillow(data)


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the result of :func:`decode`, from the file header alone.

    Raises:
        UndecodableError: not an image, or more than ``MAX_PIXELS``.
    """
    header = _jpeg_header(data)
    if header is not None:
        return header[0], header[1]
    with _open_with_pillow(data) as image:
        return image.height, image.width


def _jpeg_header(data: bytes) -> tuple[int, int, str] | None:
    """(height, width, colors), or None if it is no JPEG or libjpeg gives a warning."""
    if not data.startswith(_JPEG):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_pixel_count(height, width)
    return height, width, colors


def _decode_with_pillow(data: bytes) -> np.ndarray:
    with _open_with_pillow(data) as image:
        if image.mode.startswith(("I", "F")):
            raise UndecodableError(
                f"its mode {image.mode} has more than 8 bits, which RGB would cut off at 255: "
                "convert it to 8 bits"
            )
        return np.array(image.convert("RGB"))  # reads the whole file, so truncation fails here


@contextmanager
def _open_with_pillow(data: bytes) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
            warnings.filterwarnings("ignore", "Corrupt EXIF", UserWarning)  # not read
            with Image.open(io.BytesIO(data)) as image:
                _check_pixel_count(image.height, image.width)
                yield image
    except UndecodableError:
        raise
    except Exception as error:  # Pillow raises errors of many types for broken files
        reason = "unknown image format" if "cannot identify" in str(error) else str(error)
        raise UndecodableError(reason) from error


def _check_pixel_count(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise UndecodableError(
            f"its header says {width} x {height} pixels, more than the {MAX_PIXELS} allowed: a "
            "decompression bomb?"
        )
