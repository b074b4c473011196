"""Decoding gives Pillow's pixels bit for bit with every decoder, and rejects broken files."""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from jpegs import jpeg
from PIL import Image

from sn_imagenet.data import decode as decoding
from sn_imagenet.data.decode import UndecodableError, decode, image_size


def pillow_pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def test_real_photographs_and_their_first_rows(imagenet_photos: Path) -> None:
    rng, modes, fewer = random.Random(0), set(), 0
    for path in sorted((imagenet_photos / "train").rglob("*.JPEG")):
        data = path.read_bytes()
        with Image.open(path) as image:
            modes.add(image.mode)
        whole = pillow_pixels(data)
        assert np.array_equal(decode(data), whole), path
        rows = rng.randrange(1, len(whole) + 1)
        top = decode(data, rows)
        assert len(top) in (rows, len(whole)) and np.array_equal(top, whole[: len(top)]), path
        fewer += len(top) < len(whole)
    assert modes == {"L", "RGB"} and fewer > 150


@pytest.fixture(scope="module")
def synthetic() -> Image.Image:
    """A smooth image with edges, which reveals different upsampling of chroma."""
    y, x = np.mgrid[0:75, 0:101]
    channels = [x * 2, y * 3, (x * y) % 256]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def test_formats_that_simplejpeg_decodes_differently(
    synthetic: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90 degrees
    rgb_jpeg = encode(synthetic, "JPEG", keep_rgb=True)
    whole = encode(synthetic, "JPEG")
    files = {
        "cmyk": jpeg(0, "CMYK"),
        "cmyk picture": encode(synthetic.convert("CMYK"), "JPEG"),
        "png": encode(synthetic, "PNG"),
        "palette": encode(synthetic.convert("P"), "GIF"),
        "transparent": encode(synthetic.convert("RGBA"), "PNG"),
        "rgb": rgb_jpeg,
        "gray": encode(synthetic.convert("L"), "JPEG"),
        "exif": encode(synthetic, "JPEG", exif=exif),
        "garbage at the end": whole + b"garbage",
        "garbage between markers": whole[:2] + b"\xff\xfe\x00\x05abc" + b"xyz" + whole[2:],
    }
    for name, data in files.items():
        assert np.array_equal(decode(data), pillow_pixels(data)), name
        assert image_size(data) == decode(data).shape[:2], name

    monkeypatch.setattr(decoding, "_decode_with_pillow", lambda data: pytest.fail("by Pillow"))
    decode(files["exif"]), decode(files["gray"]), decode(rgb_jpeg)


@pytest.mark.parametrize(
    ("mode", "options", "max_partial"),
    [
        ("RGB", {"subsampling": "4:4:4"}, 72),
        ("RGB", {"subsampling": "4:2:2"}, 72),
        ("RGB", {"subsampling": "4:2:0"}, 48),
        ("RGB", {"quality": 1}, 48),
        ("RGB", {"keep_rgb": True}, 72),
        ("RGB", {"comment": b"\xff\xc0 is not a frame"}, 48),
        ("L", {}, 72),
        ("L", {"subsampling": "4:2:0"}, 48),
        ("RGB", {"progressive": True}, 0),
        ("RGB", {"progressive": True, "subsampling": "4:4:4"}, 0),
        ("RGB", {"restart_marker_rows": 1}, 0),
        ("CMYK", {}, 0),
    ],
)
def test_first_rows_of_every_kind_of_jpeg(
    synthetic: Image.Image, mode: str, options: dict[str, object], max_partial: int
) -> None:
    """``max_partial``: up to this many of the 75 rows can be decoded alone."""
    data = encode(synthetic.convert(mode), "JPEG", **options)
    whole = pillow_pixels(data)
    for rows in range(1, len(whole) + 1):
        top = decode(data, rows)
        assert np.array_equal(top, whole[: len(top)]), rows
        assert len(top) == (rows if rows <= max_partial else len(whole))


def test_first_rows_of_damaged_files(synthetic: Image.Image) -> None:
    """A truncated file is always an error. A damaged one either gives the same first rows as a full
    decode, or is an error."""
    data = encode(synthetic, "JPEG", quality=90)
    start = data.index(b"\xff\xda")
    for end in range(start + 20, len(data) - 1, 7):
        with pytest.raises(UndecodableError, match=r"[Tt]runcated|[Bb]roken"):
            decode(data[:end], 16)
    rng = random.Random(1)
    outcomes = Counter()
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 3])):
            damaged[rng.randrange(2, len(data))] = rng.randrange(256)
        outcomes[compare_first_rows(bytes(damaged), 16)] += 1
    assert all(outcomes[kind] > 20 for kind in ("same", "error")), outcomes


def compare_first_rows(data: bytes, rows: int) -> str:
    try:
        top = decode(data, rows)
    except UndecodableError:
        with pytest.raises(UndecodableError):
            decode(data)
        return "error"
    try:
        whole = decode(data)
    except UndecodableError:
        return "error below"
    assert np.array_equal(top[:rows], whole[:rows])
    return "same"


def test_incomplete_images_are_refused() -> None:
    whole = jpeg(1, size=(200, 200))
    png = encode(Image.new("RGB", (200, 200)), "PNG")
    for data in (b"", b"this is not an image", whole[: len(whole) // 2], whole[:40], png[:-60]):
        with pytest.raises(UndecodableError, match=r"unknown image format|[Tt]runcated|[Bb]roken"):
            decode(data)


def test_decompression_bombs_are_refused() -> None:
    bomb = bytearray(jpeg(0))
    frame = bomb.index(b"\xff\xc0")
    bomb[frame + 5 : frame + 9] = (65000).to_bytes(2, "big") * 2
    assert simplejpeg.decode_jpeg_header(bytes(bomb))[:2] == (65000, 65000)
    with pytest.raises(UndecodableError, match=r"65000 x 65000 pixels.*bomb"):
        decode(bytes(bomb))
    for side in (10_000, 20_000):  # Pillow alone warns about the first and refuses the second
        png = encode(Image.new("1", (side, side)), "PNG")
        assert len(png) < 100_000
        with pytest.raises(UndecodableError, match="pixels"):
            decode(png)
