"""Annotations in COCO's format: read, indexed, grouped, flipped, and refused if they are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask
from pycocotools.coco import COCO
from test_tasks_custom import run

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data import index as index_files
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.loaders import BatchLoader
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.tasks import build_task
from sn_imagenet.tasks.detection import coco
from sn_imagenet.tasks.detection.coco import open_annotations, read_annotations, usable_objects
from sn_imagenet.tasks.detection.images import DetectionDataset
from sn_imagenet.tasks.detection.prepare import prepare_coco
from sn_imagenet.tasks.detection.sampling import CalibrationSampler, GroupSampler, grouped_order

Compose = Callable[..., ExperimentConfig]
ROOT = Path(__file__).parents[2]
REAL = [
    ("coco_small", "train2017"), ("coco_small", "val2017"), ("nuclei", "val"),
    ("blood_cells", "train"),
]  # fmt: skip


def training(root: Path, part: str = "train", **options: Any) -> DetectionDataset:
    annotations = open_annotations(root / f"{part}.json", root / part)
    return DetectionDataset(annotations, root / part, annotations.trainable, seed=0,
                            training=True, **options)  # fmt: skip


@pytest.mark.parametrize(("name", "part"), REAL)
def test_images_hold_what_the_file_says(real: Callable[[str], Path], name: str, part: str) -> None:
    root = real(name)
    path = root / "annotations" / f"instances_{part}.json"
    annotations = open_annotations(path, root / part)
    truth = COCO(str(path))
    categories = [truth.cats[number] for number in sorted(truth.cats)]
    assert [c["id"] for c in annotations.categories] == [c["id"] for c in categories]
    assert annotations.names == [c["name"] for c in categories]
    assert annotations.has_masks == (name != "blood_cells")
    for position, image_id in enumerate(sorted(truth.imgs)):
        image, stated = annotations.image(position), truth.imgs[image_id]
        assert all(image[k] == stated[k] for k in ("id", "file_name", "height", "width"))
        assert annotations.sizes[position].tolist() == [image["height"], image["width"]]
        entries = truth.imgToAnns.get(image_id, [])
        for mine, theirs in zip(image["annotations"], entries, strict=True):
            keys = ("id", "category_id", "bbox", "area", "iscrowd")
            assert all(mine[key] == theirs[key] for key in keys)
            if annotations.has_masks:
                assert np.array_equal(mask.decode(mine["segmentation"]), truth.annToMask(theirs))


def test_what_is_not_used_is_counted(real: Callable[[str], Path]) -> None:
    root = real("coco_small")
    path, folder = root / "annotations" / "instances_train2017.json", root / "train2017"
    annotations = open_annotations(path, folder)
    assert annotations.summary == (
        "92 images, 829 objects, 80 categories, 1 images without objects, 9 crowds, 13 categories "
        "without objects"
    )
    assert len(annotations.trainable) == 91
    images = map(annotations.image, range(len(annotations)))
    used = [entry for image in images for entry in usable_objects(image)]
    assert len(used) == 829 - 9 and not any(entry["iscrowd"] for entry in used)


def test_boxes_without_area_and_thin_ones(drawn: Path, tmp_path: Path) -> None:
    """As in torchvision's reference: not trained on; an image with thin boxes alone is left out."""
    content = json.loads((drawn / "train.json").read_text())
    first = content["images"][0]["id"]
    mine = [entry for entry in content["annotations"] if entry["image_id"] == first]
    mine[0]["bbox"][2] = 0  # no area
    second = [e for e in content["annotations"] if e["image_id"] == first + 3]
    for entry in second:
        entry["bbox"][3] = 1  # one pixel high
    (tmp_path / "train.json").write_text(json.dumps(content))
    annotations = read_annotations(tmp_path / "train.json", drawn / "train")
    assert annotations.trainable.tolist() == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    thin = annotations.image(3)
    assert usable_objects(thin) == thin["annotations"]
    assert "1 boxes without area" in annotations.summary
    # A flip or a resize in float32 could leave no area of these.
    for width in (1e-6, 1e-4):
        assert not usable_objects(
            {**thin, "annotations": [{**second[0], "bbox": [30, 2, width, 9]}]}
        )


def test_an_index_is_used_until_its_file_changes(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train.json"
    path.write_bytes((drawn / "train.json").read_bytes())
    built = open_annotations(path, drawn / "train")
    assert (tmp_path / "train.json.index.npz").exists()
    with monkeypatch.context() as patch:
        patch.setattr(coco, "read_annotations", None)
        opened = open_annotations(path, drawn / "train")
    assert opened.sha256 == built.sha256
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][0] += 1
    path.write_text(json.dumps(content))
    assert open_annotations(path, drawn / "train").sha256 != built.sha256
    (tmp_path / "train.json.index.npz").write_bytes(b"damaged")
    assert open_annotations(path, drawn / "train").sha256 != built.sha256


def test_the_fingerprint_covers_files_and_annotations(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for file in (drawn / "train").iterdir():
        (tmp_path / "train" / file.name).write_bytes(file.read_bytes())
    same = read_annotations(drawn / "train.json", tmp_path / "train")
    assert same.sha256 == training(drawn).annotations.sha256
    with (tmp_path / "train" / "0.png").open("ab") as file:
        file.write(b"\0")
    changed = read_annotations(drawn / "train.json", tmp_path / "train")
    assert changed.sha256 != same.sha256


@pytest.mark.parametrize(
    ("where", "key", "value", "message"),
    [
        ("", "images", None, "no list 'images'; expected a file in COCO's format"),
        ("", "images", [], "it has 0 images and 2 categories; expected at least one image"),
        ("annotations", "id", 1.5, "entry 1 of 'annotations': id=1.5: expected a whole number"),
        ("annotations", "image_id", 10.0, "image_id=10.0: expected a whole number"),
        ("annotations", "image_id", 99, "image_id=99: expected an id of the 12 images"),
        ("annotations", "category_id", 1, "category_id=1: expected an id of the 2 categories"),
        ("annotations", "bbox", [1, 2, 3], "expected four finite numbers"),
        ("annotations", "bbox", [1, 2, 3, float("nan")], "expected four finite numbers"),
        ("annotations", "bbox", [30, 2, -10, 9], "width >= 0, height >= 0"),
        ("annotations", "iscrowd", "0", "iscrowd='0'; expected"),
        ("annotations", "area", float("nan"), "area=nan"),
        (
            "annotations",
            "segmentation",
            [[1, 2, 3, 4, 5, float("nan")]],
            "a point that is not finite",
        ),
        (
            "annotations",
            "segmentation",
            {"size": [48, 64], "counts": ""},
            "run lengths ''; expected",
        ),
        ("annotations", "segmentation", {"size": [48, 64], "counts": 5}, "run lengths 5; expected"),
        ("annotations", "segmentation", {"size": [48, 64], "counts": "PPYo1"}, "nvalid RLE"),
        ("annotations", "segmentation", {"size": [48, 64], "counts": [-10, 3082]}, "not add up"),
        ("annotations", "bbox", [50, 2, 40, 9], "is outside of image 10, 64 x 48 pixels"),
        ("annotations", "bbox", [-5, 2, 9, 9], "is outside of image 10"),
        ("annotations", "segmentation", [[1, 2, 3, 4]], "a polygon of fewer than three points"),
        (
            "annotations",
            "segmentation",
            {"size": [64, 48], "counts": [0, 3072]},
            "a mask of size [64, 48] for an image of [48, 64]",
        ),
        (
            "annotations",
            "segmentation",
            {"size": [48, 64], "counts": [0, 3071]},
            "run lengths that do not add up",
        ),
        ("annotations", "segmentation", {"size": [48, 64]}, "'counts'; expected an area"),
        ("images", "file_name", "x/none.png", "lacks 1 of the 12 images"),
        ("images", "height", 0, "entry 1 of 'images': height=0: expected a whole number above 0"),
        ("images", "id", 11, "id=11: an earlier one has it"),
        ("categories", "name", 5, "entry 1 of 'categories': name=5: expected a string"),
    ],
)
def test_a_wrong_value_is_one_line(
    drawn: Path, tmp_path: Path, where: str, key: str, value: Any, message: str
) -> None:
    content = json.loads((drawn / "train.json").read_text())
    (content[where][0] if where else content)[key] = value
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        read_annotations(path, drawn / "train")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_boxes_as_fractions_are_named(drawn: Path, tmp_path: Path) -> None:
    content = json.loads((drawn / "train.json").read_text())
    for entry in content["annotations"]:
        entry["bbox"] = [0.1, 0.2, 0.3, 0.4]
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="expected pixels, not fractions"):
        read_annotations(tmp_path / "train.json", drawn / "train")


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"images": 3}'])
def test_a_file_of_another_kind_is_one_line(drawn: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(DataError, match=r"train.json"):
        read_annotations(tmp_path / "train.json", drawn / "train")
    with pytest.raises(DataError, match="no such file or folder"):
        open_annotations(tmp_path / "none.json", drawn / "train")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("protocol=paper",), "protocol=paper: task=detection needs a protocol of its own"),
        (("data=coco", "data.root=null"), "data.root=DIR (or COCO_ROOT) is missing"),
        (("data.val_annotations=null",), "data.val_annotations= is missing"),
        (("data=digits",), "data=digits: task=detection needs data=coco or data=coco_format"),
        (("norm=frozen_bn",), "norm=frozen_bn: its statistics come from a trained classifier"),
        (("model=faster_rcnn_c4_mini", "norm.head=in"), "norm.head=in: the head of faster_rcnn_c4"),
        (("norm.head=frozen_bn",), "norm.head=frozen_bn: a classifier has no statistics for heads"),
        (("augment=official",), "augment=official: task=detection supports augment=flip and"),
        (("data.classes=2",), "data.classes=2: not for task=detection"),
        (
            ("batch=8x4",),
            "needs 8 groups of 4 images, each all wide or all tall; 12 training images",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(
    composed: Compose, drawn_options: tuple[str, ...], overrides: tuple[str, ...], message: str
) -> None:
    data = () if overrides[0].startswith("data=") else drawn_options
    words = ("task=detection", "model=mask_rcnn_fpn_mini", *data, *overrides)

    def prepare() -> None:
        task = build_task(composed(*words))
        data = task.datasets()
        task.check(task.network(data), data)

    with pytest.raises(UserError) as error:
        prepare()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_mask_model_needs_masks(
    composed: Compose, drawn: Path, drawn_options: tuple[str, ...], tmp_path: Path
) -> None:
    content = json.loads((drawn / "train.json").read_text())
    del content["annotations"][3]["segmentation"]
    (tmp_path / "t.json").write_text(json.dumps(content))
    words = ("task=detection", *drawn_options, f"data.train_annotations={tmp_path / 't.json'}")
    with pytest.raises(DataError, match="use model=faster_rcnn_fpn"):
        build_task(composed(*words, "model=mask_rcnn_fpn_mini")).datasets()
    data = build_task(composed(*words, "model=faster_rcnn_fpn_mini")).datasets()
    assert data.classes == ("square", "round")  # by their ids


def test_a_subset_is_the_same_for_every_seed(
    composed: Compose, drawn_options: tuple[str, ...]
) -> None:
    words = ("task=detection", *drawn_options, "data.subset=0.5")
    chosen = [build_task(composed(*words, f"seed={s}")).datasets().train.chosen for s in (0, 1)]
    assert len(chosen[0]) == 6 and np.array_equal(*chosen)


def test_a_flip_mirrors_image_boxes_and_masks(drawn: Path) -> None:
    plain, flipped = training(drawn, masks=True), training(drawn, masks=True, flip=True)
    flips = np.zeros((12, 40), dtype=bool)
    for index in range(12):
        width = int(plain.annotations.sizes[index][1])
        for epoch in range(40):
            one, other = (d.__getitems__([(epoch, index)]) for d in (plain, flipped))
            mine, theirs = one.targets[0], other.targets[0]
            flips[index, epoch] = not torch.equal(one.images[0], other.images[0])
            if not flips[index, epoch]:
                assert torch.equal(mine["boxes"], theirs["boxes"])
                continue
            assert torch.equal(one.images[0].flip(-1), other.images[0])
            assert torch.equal(mine["masks"].flip(-1), theirs["masks"])
            assert torch.equal(width - mine["boxes"][:, [2, 0]], theirs["boxes"][:, [0, 2]])
            assert torch.equal(mine["labels"], theirs["labels"])
    assert 0.4 < flips.mean() < 0.6
    assert flips.mean(axis=0).min() > 0.1 and flips.mean(axis=1).max() < 0.9
    for target in training(drawn, masks=True).__getitems__([(0, i) for i in range(12)]).targets:
        for box, shape in zip(target["boxes"].long(), target["masks"], strict=True):
            rows, columns = shape.nonzero(as_tuple=True)
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert (torch.stack(found) - box).abs().max() <= 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_groups_have_one_orientation_and_each_image_once(size: int) -> None:
    ratios = np.where(np.arange(101) % 3, 1.5, 0.7)
    orders = [grouped_order(ratios, size, seed=3, epoch=epoch) for epoch in range(3)]
    wide, tall = int((ratios > 1).sum()), int((ratios < 1).sum())
    for order in orders:
        assert order.shape == (wide // size + tall // size, size)
        assert len(np.unique(order)) == order.size
        assert all(len(set(ratios[group])) == 1 for group in order)
    assert not np.array_equal(orders[0], orders[1])
    kinds = ratios[orders[0][:, 0]] > 1  # in random order
    assert np.abs(np.diff(kinds.astype(int))).sum() > 5


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_any_number_of_ranks_trains_the_same_replicas(world_size: int) -> None:
    ratios = np.where(np.arange(101) % 3, 1.5, 0.7)

    def replicas(ranks: int, start: int) -> list[list[list[int]]]:
        steps = []
        options = {"world_size": ranks, "seed": 5}
        samplers = [GroupSampler(ratios, 4, 2, rank=rank, **options) for rank in range(ranks)]
        for sampler in samplers:
            sampler.set_epoch(7, start)
        for parts in zip(*samplers, strict=True):
            batch = [0] * 8
            for rank, part in enumerate(parts):
                assert {key.epoch for key in part} == {7}
                batch[rank::ranks] = [key.sample for key in part]
            steps.append([batch[replica::4] for replica in range(4)])
        return steps

    expected = replicas(1, 0)
    assert len(expected) == len(GroupSampler(ratios, 4, 2, rank=0, world_size=1, seed=5)) == 12
    flat = grouped_order(ratios, 2, seed=5, epoch=7)[:48].reshape(12, 4, 2)
    assert expected == flat.tolist()
    assert replicas(world_size, 0) == expected
    assert replicas(world_size, 9) == expected[9:]


def test_calibration_minibatches_are_each_on_one_rank() -> None:
    ratios = np.where(np.arange(50) % 3, 1.5, 0.7)

    def sampler(samples: Any, size: int = 2, rank: int = 0, ranks: int = 1, skip: int = 0) -> Any:
        ours = {"rank": rank, "world_size": ranks, "skip": skip, "minibatches_per_batch": 7}
        return CalibrationSampler(ratios, size, samples=samples, seed=1, **ours)

    alone = list(sampler(30))
    assert len(alone) == 15 and {key.epoch for batch in alone for key in batch} == {-2}
    assert all(len({ratios[key.sample] for key in batch}) == 1 for batch in alone)
    parts = [list(sampler(30, rank=rank, ranks=2, skip=4)) for rank in range(2)]
    assert [parts[i % 2][i // 2] for i in range(11)] == alone[4:]
    assert sampler("all", size=4).minibatches == 12  # 8 + 4


@pytest.mark.slow
def test_batches_do_not_depend_on_workers(drawn: Path) -> None:
    batches = []
    for workers in (0, 2):
        data = training(drawn, masks=True, flip=True)
        sampler = GroupSampler(data.aspect_ratios, 2, 2, rank=0, world_size=1, seed=0)
        loader = BatchLoader(data, sampler, workers, torch.device("cpu"), persistent=True)
        batches.append([*loader.epoch(0), *loader.epoch(1, 1)])
    assert len(batches[0]) == len(batches[1]) == 3
    for one, other in zip(*batches, strict=True):
        assert one.indices == other.indices
        assert all(map(torch.equal, one.images, other.images))
        for mine, theirs in zip(one.targets, other.targets, strict=True):
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_a_file_of_another_size_is_named(drawn: Path, tmp_path: Path) -> None:
    content = json.loads((drawn / "train.json").read_text())
    content["images"][2]["height"] += 5
    path = tmp_path / "train.json"
    path.write_text(json.dumps({**content, "annotations": content["annotations"][:1]}))
    folder = drawn / "train"
    data = DetectionDataset(open_annotations(path, folder), folder, np.arange(12))
    with pytest.raises(DataError, match=r"2.png has 72 x 40 pixels, and 72 x 45 in its annot"):
        data.__getitems__([(0, 2)])
    assert issubclass(DataError, UserError) and issubclass(ConfigError, UserError)


@pytest.mark.slow
def test_a_folder_in_cocos_layout_is_verified(
    real: Callable[[str], Path], drawn: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    assert prepare_coco(real("coco_small"), verify=True, workers=2, log=lines.append)
    assert "  every image was decoded: 0 bad" in lines
    assert "  COCO 2017 has 118,287 images: this set is incomplete" in lines
    assert lines[-1].startswith("use: task=detection data.root=")
    (tmp_path / "annotations").mkdir()
    for part in ("train", "val"):
        content = json.loads((drawn / f"{part}.json").read_text())
        if part == "train":
            content["images"][1]["height"] += 9
            content["annotations"] = []
        (tmp_path / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
        (tmp_path / part).mkdir()
        for file in (drawn / part).iterdir():
            (tmp_path / part / file.name).write_bytes(file.read_bytes())
    (tmp_path / "train" / "3.png").write_bytes(b"no image")
    (tmp_path / "annotations" / "instances_test.json").write_text("{}")
    lines.clear()
    assert not prepare_coco(tmp_path, verify=True, workers=2, log=lines.append)
    assert f"test: no folder {tmp_path / 'test'}; expected its images there" in lines
    assert next(line for line in lines if "bad:" in line).endswith(
        "1.png has 48 x 64 pixels, and 48 x 73 in its annotations"
    )
    assert "3.png cannot be read as an image" in [line for line in lines if "bad:" in line][1]
    assert f"data.val={tmp_path / 'val'}" in lines[-1] and "data=coco_format" in lines[-1]


def test_no_image_of_cocos_layout_is_marked(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").touch()
    output = run(ROOT / "configs", "scripts/prepare_data.py", tmp_path, "--mark", code=2)
    assert f"--mark: {tmp_path} has COCO's layout" in output


def test_annotations_are_read_without_a_place_for_an_index(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Folders cannot be made below a file, by root either."""
    file = tmp_path / "file"
    file.touch()
    places = [file / "a" / "b.npz", file / "c" / "d.npz"]
    for module in (coco, index_files):
        monkeypatch.setattr(module, "index_paths", lambda _: places)
    annotations = open_annotations(drawn / "train.json", drawn / "train")
    assert len(annotations) == 12
    (message,) = caplog.messages
    assert f"neither to {file / 'a' / 'b.npz'} (" in message and "next start reads" in message
