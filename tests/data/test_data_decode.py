"""Pixels of Pillow to the last bit, whichever decoder made them; what cannot be decoded."""

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


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def test_real_photographs(imagenet_photos: Path) -> None:
    modes = set()
    for path in sorted((imagenet_photos / "train").rglob("*.JPEG")):
        data = path.read_bytes()
        with Image.open(path) as image:
            modes.add(image.mode)
        assert np.array_equal(decode(data), by_pillow(data)), path
    assert modes == {"L", "RGB"}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A smooth image with edges: chroma that is upsampled differently would show."""
    y, x = np.mgrid[0:75, 0:101]
    channels = [x * 2, y * 3, (x * y) % 256]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_of_every_kind(picture: Image.Image, subsampling: str, progressive: bool) -> None:
    for quality in (30, 95):
        data = encoded(
            picture, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive
        )
        assert np.array_equal(decode(data), by_pillow(data))


def test_what_simplejpeg_does_not_decode_alike(
    picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    kept = encoded(picture, "JPEG", keep_rgb=True)
    whole = encoded(picture, "JPEG")
    files = {
        "cmyk": jpeg(0, "CMYK"),
        "cmyk picture": encoded(picture.convert("CMYK"), "JPEG"),
        "png": encoded(picture, "PNG"),
        "palette": encoded(picture.convert("P"), "GIF"),
        "transparent": encoded(picture.convert("RGBA"), "PNG"),
        "rgb": kept,
        "gray": encoded(picture.convert("L"), "JPEG"),
        "exif": encoded(picture, "JPEG", exif=exif),
        "rubbish behind": whole + b"rubbish",
        "rubbish between": whole[:2] + b"\xff\xfe\x00\x05abc" + b"xyz" + whole[2:],
    }
    for name, data in files.items():
        assert np.array_equal(decode(data), by_pillow(data)), name
        assert image_size(data) == decode(data).shape[:2], name

    monkeypatch.setattr(decoding, "_by_pillow", lambda data: pytest.fail("through Pillow"))
    decode(files["exif"]), decode(files["gray"]), decode(kept)


def test_the_first_rows_of_real_photographs(imagenet_photos: Path) -> None:
    chance = random.Random(0)
    fewer = 0
    for path in sorted((imagenet_photos / "train").rglob("*.JPEG")):
        data = path.read_bytes()
        whole = by_pillow(data)
        rows = chance.randrange(1, len(whole) + 1)
        top = decode(data, rows)
        assert len(top) in (rows, len(whole)) and np.array_equal(top, whole[: len(top)]), path
        fewer += len(top) < len(whole)
    assert fewer > 150


@pytest.mark.parametrize(
    ("mode", "options", "most"),
    [
        ("RGB", {"subsampling": "4:4:4"}, 72),
        ("RGB", {"subsampling": "4:2:2"}, 72),
        ("RGB", {"subsampling": "4:2:0"}, 48),
        ("RGB", {"quality": 1}, 48),
        ("RGB", {"keep_rgb": True}, 72),
        ("RGB", {"comment": b"\xff\xc0 is no frame here"}, 48),
        ("L", {}, 72),
        ("L", {"subsampling": "4:2:0"}, 48),
        ("RGB", {"progressive": True}, 0),
        ("RGB", {"restart_marker_rows": 1}, 0),
        ("CMYK", {}, 0),
    ],
)
def test_the_first_rows_of_jpegs_of_every_kind(
    picture: Image.Image, mode: str, options: dict[str, object], most: int
) -> None:
    """``most``: so many rows of the 75 can be had alone."""
    data = encoded(picture.convert(mode), "JPEG", **options)
    whole = by_pillow(data)
    for rows in range(1, len(whole) + 1):
        top = decode(data, rows)
        assert np.array_equal(top, whole[: len(top)]), rows
        assert len(top) == (rows if rows <= most else len(whole))


def test_faults_of_a_file_of_which_the_first_rows_are_wanted(picture: Image.Image) -> None:
    """One that ends too early is no image, wherever it ends; of a damaged one the first rows are
    those that the whole has, or there is no image."""
    data = encoded(picture, "JPEG", quality=90)
    start = data.index(b"\xff\xda")
    for end in range(start + 20, len(data) - 1, 7):
        with pytest.raises(UndecodableError, match=r"[Tt]runcated|[Bb]roken"):
            decode(data[:end], 16)
    chance = random.Random(1)
    outcomes = Counter()
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 1, 3])):
            damaged[chance.randrange(2, len(data))] = chance.randrange(256)
        outcomes[first_rows_or_none(bytes(damaged), 16)] += 1
    assert all(outcomes[kind] > 20 for kind in ("alike", "no image")), outcomes


def first_rows_or_none(data: bytes, rows: int) -> str:
    try:
        top = decode(data, rows)
    except UndecodableError:
        with pytest.raises(UndecodableError):
            decode(data)
        return "no image"
    try:
        whole = decode(data)
    except UndecodableError:
        return "a fault below"
    assert np.array_equal(top[:rows], whole[:rows])
    return "alike"


def test_what_is_no_whole_image() -> None:
    whole = jpeg(1, size=(200, 200))
    png = encoded(Image.new("RGB", (200, 200)), "PNG")
    for data in (b"", b"this is no image", whole[: len(whole) // 2], whole[:40], png[:-60]):
        with pytest.raises(UndecodableError, match=r"no known image format|[Tt]runcated|[Bb]roken"):
            decode(data)


def test_decompression_bombs_are_refused_by_their_header() -> None:
    bomb = bytearray(jpeg(0))
    frame = bomb.index(b"\xff\xc0")
    bomb[frame + 5 : frame + 9] = (65000).to_bytes(2, "big") * 2
    assert simplejpeg.decode_jpeg_header(bytes(bomb))[:2] == (65000, 65000)
    with pytest.raises(UndecodableError, match=r"65000 x 65000 pixels.*bomb"):
        decode(bytes(bomb))
    for side in (10_000, 20_000):  # Pillow would warn of the one and refuse the other
        png = encoded(Image.new("1", (side, side)), "PNG")
        assert len(png) < 100_000
        with pytest.raises(UndecodableError, match="pixels"):
            decode(png)
