"""A small ImageNet of noise images, in each layout of ImageNet."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from jpegs import jpeg
from scipy.io import savemat

# WNID: ILSVRC2012_ID, unordered. The last is not a leaf and has no images.
SYNSETS = {"n01440764": 3, "n01443537": 1, "n02105855": 4, "n01751748": 2, "n00001740": 5}
TRAIN = {
    f"{wnid}/{wnid}_{number}.JPEG": jpeg(7 * i + number)
    for i, wnid in enumerate(list(SYNSETS)[:4])
    for number in (10, 9, 100)
}
# In the real validation set, the first is a sea snake and the third a sheepdog.
VAL_CLASSES = ["n01751748", "n01440764", "n02105855", "n01443537", "n01440764", "n02105855"]
VAL = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": jpeg(100 + i) for i in range(len(VAL_CLASSES))}


def write(files: dict[str, bytes], folder: Path) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def folders(root: Path) -> Path:
    write(TRAIN, root / "train")
    write(
        {f"{wnid}/{name}": VAL[name] for name, wnid in zip(VAL, VAL_CLASSES, strict=True)},
        root / "val",
    )
    return root


def devkit() -> dict[str, bytes]:
    synsets = np.zeros(
        len(SYNSETS),
        dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")],
    )
    for i, (wnid, number) in enumerate(SYNSETS.items()):
        synsets[i] = (float(number), wnid, f"word {i}", float(wnid == "n00001740"))
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets[:, None]})
    ids = "".join(f"{SYNSETS[wnid]}\n" for wnid in VAL_CLASSES)
    return {
        "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": ids.encode(),
    }


def devkit_archive(root: Path) -> None:
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        for name, data in devkit().items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def tars(root: Path) -> Path:
    by_class: dict[str, dict[str, bytes]] = {}
    for name, data in TRAIN.items():
        wnid, _, file = name.partition("/")
        by_class.setdefault(wnid, {})[file] = data
    # Neither classes nor images are in sorted order.
    classes = {f"{wnid}.tar": tar(by_class[wnid]) for wnid in sorted(by_class, reverse=True)}
    write({"ILSVRC2012_img_train.tar": tar(classes)}, root)
    write({"ILSVRC2012_img_val.tar": tar(dict(reversed(VAL.items())))}, root)
    devkit_archive(root)
    return root


def kaggle(root: Path) -> Path:
    write(TRAIN, root / "ILSVRC" / "Data" / "CLS-LOC" / "train")
    write(VAL, root / "ILSVRC" / "Data" / "CLS-LOC" / "val")
    lines = ["ImageId,PredictionString"]
    for name, wnid in reversed(list(zip(VAL, VAL_CLASSES, strict=True))):
        lines.append(f"{name.removesuffix('.JPEG')},{wnid} 1 2 30 40 {wnid} 5 6 70 80 ")
    (root / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    return root


def flat_val(root: Path) -> Path:
    """Class folders for training, a flat val/ and the unpacked devkit."""
    write(TRAIN, root / "train")
    write(VAL, root / "val")
    write(devkit(), root)
    return root


def parquet(root: Path, named: bool = True) -> Path:
    """Hugging Face's parquet files, shuffled, in row groups of three, with or without names."""
    labels = {wnid: label for label, wnid in enumerate(sorted({*VAL_CLASSES, *list(SYNSETS)[:4]}))}
    train = [(name.split("/")[0], name.split("/")[1], data) for name, data in TRAIN.items()]
    val = [(wnid, name, VAL[name]) for name, wnid in zip(VAL, VAL_CLASSES, strict=True)]
    _shards(root, "train", train, 3, labels, named)
    _shards(root, "validation", val, 1, labels, named)
    return root


def _shards(
    root: Path,
    split: str,
    samples: list[tuple[str, str, bytes]],
    count: int,
    labels: dict[str, int],
    named: bool,
) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    (root / "data").mkdir(parents=True, exist_ok=True)
    samples = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]
    for number in range(count):
        part = samples[number::count]
        images = [
            {"bytes": data, "path": name.replace(".", f"_{wnid}.") if named else None}
            for wnid, name, data in part
        ]
        stored = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {
            "image": pa.array(images, stored),
            "label": pa.array([labels[wnid] for wnid, _, _ in part], pa.int64()),
        }
        path = root / "data" / f"{split}-{number:05d}-of-{count:05d}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=3)


LAYOUTS = {
    "folders": folders,
    "tars": tars,
    "kaggle": kaggle,
    "flat_val": flat_val,
    "parquet": parquet,
}
