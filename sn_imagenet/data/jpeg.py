"""JPEGs that end early: the rows below a crop need not be decoded.

A JPEG codes its blocks row after row; how many rows there are is one number in its header. With a
smaller number there, a decoder stops at that row. No decoder of a maintained package is told so
otherwise.
"""

from __future__ import annotations

import re

import numpy as np
import simplejpeg

# ITU-T T.81, Table B.1.
_BASELINE_FRAME, _SCAN, _RESTART_INTERVAL, _FILL = 0xC0, 0xDA, 0xDD, 0xFF
# libjpeg's first word on a file is the one that is raised: this one comes where all the rows asked
# for are decoded, and the end of the image is looked for. A damaged or a truncated file gets
# another one before.
_REST = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9")


def first_rows(data: bytes, rows: int) -> np.ndarray | None:
    """The first ``rows`` rows of an image, uint8 [rows, W, 3], to the last bit those of the whole;
    None where that would save nothing, or they cannot be had alone: the file is in several scans,
    or libjpeg has something to say of it.
    """
    found = _frame(data)
    if found is None:
        return None
    frame, block = found
    height, width = (int.from_bytes(data[frame + k : frame + k + 2], "big") for k in (1, 3))
    # Where chroma has fewer rows, its upsampling looks at the next row of blocks.
    enough = (-(-rows // block) + (block > 8)) * block
    if enough >= height:
        return None
    shortened = data[: frame + 1] + enough.to_bytes(2, "big") + data[frame + 3 :]
    pixels = np.empty((enough, width, 3), np.uint8)
    try:
        simplejpeg.decode_jpeg(shortened, "RGB", buffer=pixels)
    except ValueError as said:
        if _REST.fullmatch(str(said)):
            return pixels[:rows]
    return None


def _frame(data: bytes) -> tuple[int, int] | None:
    """Where the parameters of the only frame begin (precision, height, width, components: T.81,
    B.2.2), and how many rows a row of its blocks has; None for a file that is not baseline, has
    restart intervals, or more scans than one."""
    frame = components = block = 0
    at = 2
    while at + 4 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        at += 4
        if marker == _BASELINE_FRAME:
            frame, components = at, data[at + 5]
            block = 8 * max(data[at + 7 + 3 * k] & 15 for k in range(components))
        elif marker == _SCAN:
            return (frame, block) if frame and data[at] == components else None
        elif marker in (_RESTART_INTERVAL, _FILL):
            return None
        at += length - 2
    return None
