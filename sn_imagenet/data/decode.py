"""From the bytes of an image file to its pixels: those of Pillow, in less time."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from PIL import Image

from sn_imagenet.data.jpeg import first_rows

# Pillow warns above this many pixels; a file of a few kB may claim billions (a "bomb").
MAX_PIXELS = 89_478_485
_JPEG = b"\xff\xd8\xff"
# Pillow converts CMYK and YCCK by a rule of its own.
_SIMPLEJPEG = ("YCbCr", "RGB", "Gray")


class UndecodableError(ValueError):
    """The bytes are no whole image; the message says why, in half a sentence."""


def decode(data: bytes, rows: int | None = None) -> np.ndarray:
    """The image as RGB, uint8 [H, W, 3]: to the last bit ``Image.open(...).convert("RGB")`` of
    Pillow. EXIF orientation is not applied, as torchvision's ImageFolder does not.

    ``rows``: only so many, from the top, are needed; it may end there, and what is damaged below
    them may go unseen (but not that the file ends too early).

    JPEGs in grayscale, YCbCr and RGB go through simplejpeg. Whatever else the bytes hold (PNG or
    CMYK under the name of a JPEG; a JPEG of which libjpeg has something to say) goes to Pillow.

    Raises:
        UndecodableError: no image, a truncated one, or one of more than ``MAX_PIXELS``.
    """
    if data.startswith(_JPEG):
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
            _refuse_bomb(height, width)
            if colors in _SIMPLEJPEG:
                if rows is not None and (top := first_rows(data, rows)) is not None:
                    return top
                return simplejpeg.decode_jpeg(data, "RGB")
        except UndecodableError:
            raise
        except ValueError:
            pass  # strict: libjpeg's warnings too; Pillow says whether it is an image
    return _by_pillow(data)


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of what :func:`decode` would give, from the file's header alone.

    Raises:
        UndecodableError: no image, or one of more than ``MAX_PIXELS``.
    """
    if data.startswith(_JPEG):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            pass  # as in decode
        else:
            _refuse_bomb(height, width)
            return height, width
    with _pillow(data) as image:
        return image.height, image.width


def _by_pillow(data: bytes) -> np.ndarray:
    with _pillow(data) as image:
        return np.array(image.convert("RGB"))  # reads all: a truncated file fails here


@contextmanager
def _pillow(data: bytes) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
            warnings.filterwarnings("ignore", "Corrupt EXIF", UserWarning)  # not read
            with Image.open(io.BytesIO(data)) as image:
                _refuse_bomb(image.height, image.width)
                yield image
    except UndecodableError:
        raise
    except Exception as error:  # Pillow raises errors of many types for broken files
        reason = "no known image format" if "cannot identify" in str(error) else str(error)
        raise UndecodableError(reason) from error


def _refuse_bomb(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise UndecodableError(
            f"it claims {width} x {height} pixels, more than the {MAX_PIXELS} allowed: a "
            "decompression bomb?"
        )
