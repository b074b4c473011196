"""Partial JPEG decoding, which skips the rows below a crop.

A JPEG stores its blocks row by row, and the number of rows is one field of its header. With a
smaller number in that field, a decoder stops at that row. No maintained package offers this as an
option.
"""

from __future__ import annotations

import re

import numpy as np
import simplejpeg

# ITU-T T.81, Table B.1.
_BASELINE_FRAME, _SCAN, _RESTART_INTERVAL, _FILL = 0xC0, 0xDA, 0xDD, 0xFF
# simplejpeg raises libjpeg's first warning about a file. This one appears after all requested rows
# are decoded, when libjpeg looks for the end of the image. A damaged or truncated file causes a
# different warning before it.
_ROWS_DONE_WARNING = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9")


def decode_first_rows(data: bytes, rows: int) -> np.ndarray | None:
    """The first ``rows`` rows of an image, uint8 [rows, W, 3], bit-identical to a full decode.
    None if that saves nothing or is not possible, because the file has several scans or libjpeg
    gives a warning.
    """
    frame_and_block = _find_frame(data)
    if frame_and_block is None:
        return None
    frame, block = frame_and_block
    height, width = (int.from_bytes(data[frame + k : frame + k + 2], "big") for k in (1, 3))
    # Upsampling of vertically subsampled chroma reads the next row of blocks.
    decoded_rows = (-(-rows // block) + (block > 8)) * block
    if decoded_rows >= height:
        return None
    shortened = data[: frame + 1] + decoded_rows.to_bytes(2, "big") + data[frame + 3 :]
    pixels = np.empty((decoded_rows, width, 3), np.uint8)
    try:
        simplejpeg.decode_jpeg(shortened, "RGB", buffer=pixels)
    except ValueError as warning:
        if _ROWS_DONE_WARNING.fullmatch(str(warning)):
            return pixels[:rows]
    return None


def _find_frame(data: bytes) -> tuple[int, int] | None:
    """(offset of the parameters of the only frame, pixel rows per row of blocks). The parameters
    are precision, height, width, components (T.81, B.2.2). None if the file is not baseline, has
    restart intervals, or has several scans."""
    frame = components = block = 0
    pos = 2
    while pos + 4 < len(data) and data[pos] == 0xFF:
        marker, length = data[pos + 1], int.from_bytes(data[pos + 2 : pos + 4], "big")
        pos += 4
        if marker == _BASELINE_FRAME:
            frame, components = pos, data[pos + 5]
            block = 8 * max(data[pos + 7 + 3 * k] & 15 for k in range(components))
        elif marker == _SCAN:
            return (frame, block) if frame and data[pos] == components else None
        elif marker in (_RESTART_INTERVAL, _FILL):
            return None
        pos += length - 2
    return None
