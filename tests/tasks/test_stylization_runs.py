"""Runs of stylization: trained, killed, resumed, placed, evaluated, applied, exported, refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_stylization_losses import DATA, random_vgg
from test_tasks_custom import check_resumed, kill_at, result, rows, run

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.models import load
from sn_imagenet.tasks import build_task, prepare
from sn_imagenet.tasks.stylization import stylize_folder

ROOT = Path(__file__).parents[2]
Compose = Callable[..., ExperimentConfig]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train/``, 40 tiles of two photographs, ``style.jpg``, and ``vgg.pth`` of random weights."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "train").mkdir()
    china, flower = load_sample_images().images
    for number in range(40):
        top, left = 40 * (number % 9), 100 * (number // 9)
        tile = (china, flower)[number % 2][top : top + 40, left : left + 50]
        Image.fromarray(tile).save(folder / "train" / f"{number}.png")
    Image.fromarray(flower).save(folder / "style.jpg")
    torch.save(random_vgg(), folder / "vgg.pth")
    return folder


def options(files: Path, *more: str) -> tuple[str, ...]:
    return (
        "task=stylization",
        f"task.style={files / 'style.jpg'}",
        f"task.features={files / 'vgg.pth'}",
        f"data.train={files / 'train'}",
        "data.image_size=16",
        "data.workers=0",
        "calibration.samples=16",
        "trainer.max_steps=10",
        "trainer.log_every=1",
        "trainer.validate_every=4",
        *more,
    )


@pytest.fixture(scope="module")
def finished(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of SN."""
    runs = tmp_path_factory.mktemp("runs")
    run(files, "train.py", *options(files, "norm=sn", f"runs_dir={runs}"))
    (found,) = runs.rglob("result.json")
    return found.parent


def test_the_defaults_are_the_papers(composed: Compose) -> None:
    config = composed("task=stylization", "task.style=a/starry_night.jpg", "task.features=b")
    trainer, data = config.trainer, config.data
    assert (config.batch.name, trainer.epochs, trainer.max_steps) == ("1x4", None, 40_000)
    assert (data.source, data.image_size, data.resize_size) == ("images", 256, 256)
    assert config.run_dir.endswith("transform_net-starry_night/sn/1x4/seed0")
    assert composed("task=stylization", "batch=2x8", "data.image_size=64").data.resize_size == 64
    departures = {d["item"]: (d["paper"], d["ours"]) for d in build_task(config).departures({})}
    assert departures == {"data": ("coco", "images"), "scale of the features": ("unit", "pixels")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("task.style=null",), r"task.style=null: give task.style=FILE"),
        (("task.style=README.md",), r"README.md cannot be read as an image \(unknown format\)"),
        (("task.features=README.md",), r"task.features=README.md: cannot be read as weights"),
        (
            ("data.image_size=7",),
            r"style.jpg: 7 x 5 pixels at the size asked for; expected at least 8",
        ),
        (("data.image_size=7", "task.style_size=20"), r"data.image_size=7: expected at least 8"),
        (("task.content_layer=relu5_1",), r"content_layer=relu5_1: expected one of relu1_2, relu2"),
        (("task.style_weight=-1",), r"task.style_weight=-1: expected a number of at least 0"),
        (
            ("task.styl_weight=1",),
            r"task=stylization: .* unexpected keyword argument 'styl_weight'",
        ),
        (("model=resnet14_mini",), r"resnet14_mini: task=stylization needs transform_net"),
        (("model.args.padding=reflect_start",), r"data.image_size=16: expected at least 41"),
        (("model.args.upsampling=cubic",), r"model.args.upsampling=cubic: expected one of nearest"),
    ],
)
def test_bad_input_is_named_in_one_line(
    changes: tuple[str, ...], message: str, files: Path, composed: Compose
) -> None:
    given = {change.partition("=")[0] for change in changes}
    kept = [word for word in options(files) if word.partition("=")[0] not in given]
    added = [f"+{c}" if "styl_weight" in c else c for c in changes]
    with pytest.raises(UserError, match=message) as error:
        prepare(composed(*kept, *added))
    assert "\n" not in str(error.value)


def test_features_weights_follow_their_scale(files: Path, composed: Compose) -> None:
    def weights(*changes: str) -> dict[str, Any]:
        task: Any = build_task(composed(*options(files, *changes)))
        return {name: task.numbers[name] for name in ("content_weight", "style_weight")}

    unit = {"content_weight": 1e5, "style_weight": 1e10}
    assert weights() == {"content_weight": 1.0, "style_weight": 5.0}
    assert weights("task.feature_scale=unit") == unit
    assert weights("task.features=null") == unit
    assert weights("task.style_weight=7") == {"content_weight": 1.0, "style_weight": 7}
    with pytest.raises(
        ConfigError, match=r"task.feature_scale=caffe: expected one of unit, pixels"
    ):
        weights("task.feature_scale=caffe")


@pytest.mark.slow
def test_a_run_records_its_losses(files: Path, finished: Path) -> None:
    record = result(finished)
    assert record["status"] == "finished" and record["cell"]["row"] == "style"
    assert record["score"]["key"] == "total_loss" and not record["score"]["higher_is_better"]
    assert [e["statistics"] for e in record["evaluations"]] == ["moving_average", "batch_average"]
    for numbers in record["evaluations"]:
        assert numbers["seen"] == 4  # a tenth of 40
        parts = numbers["feature_loss"] + numbers["style_loss"]
        assert numbers["total_loss"] == pytest.approx(parts)
    training = [row for row in rows(finished) if row["kind"] == "train"]
    assert all(r["loss"] == pytest.approx(r["feature"] + r["style"]) for r in training)
    assert [row["step"] for row in rows(finished) if "val" in row] == [4, 8]
    assert record["provenance"]["data_fingerprint"].keys() == {"train", "val", "style", "features"}
    assert len(record["importance_weights"]) == 15
    folder = next(finished.rglob("events.*")).parent
    accumulator = EventAccumulator(str(folder)).Reload()
    assert [e.step for e in accumulator.Images("content and output")] == [4, 8]


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(files: Path, finished: Path, tmp_path: Path) -> None:
    line = ("train.py", *options(files, "norm=sn"))
    check_resumed(finished, (3, 7), tmp_path, files, *line)
    # The same command with another style image of that name is another experiment.
    (tmp_path / "result.json").unlink()
    (tmp_path / "other").mkdir()
    Image.fromarray(load_sample_images().images[0]).save(tmp_path / "other" / "style.jpg")
    other = (f"run_dir={tmp_path}", f"task.style={tmp_path / 'other' / 'style.jpg'}")
    output = run(files, *line, *other, code=2)
    assert "was trained with other data: the style images differ" in output


@pytest.mark.slow
def test_placements_agree(files: Path, tmp_path: Path) -> None:
    """Two replicas of two: in one pass, in two, and on two processes with a kill in between."""
    # With a larger rate rounding differences grow tenfold a step, as does noise of 1e-7.
    common = options(files, "norm=bn", "batch=2x2", "tracker=none", "task.learning_rate=1e-5")
    variants = {"one": ((), 1), "passes": (("trainer.replicas_per_pass=1",), 1), "two": ((), 2)}
    for name, (more, processes) in variants.items():
        line = ("train.py", *common, *more, f"run_dir={tmp_path / name}", "checkpoint.minutes=0")
        if name == "two":
            kill_at(5, tmp_path / name, files, *line, processes=processes)
        run(files, *line, processes=processes)
    expected = rows(tmp_path / "one")
    for name in ("passes", "two"):
        found = rows(tmp_path / name)
        assert [row["step"] for row in found] == [row["step"] for row in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.get("loss", 0) == pytest.approx(theirs.get("loss", 0), rel=1e-3)
        ours, theirs = (result(tmp_path / n)["evaluations"][1] for n in (name, "one"))
        assert ours["total_loss"] == pytest.approx(theirs["total_loss"], rel=1e-3)


@pytest.mark.slow
def test_images_are_stylized_with_the_runs_network(
    files: Path, finished: Path, tmp_path: Path
) -> None:
    content = tmp_path / "content"
    content.mkdir()
    photograph = Image.fromarray(load_sample_images().images[0])
    photograph.save(content / "china.jpg")
    exif = photograph.getexif()
    exif[0x0112] = 6
    photograph.save(content / "turned.png", exif=exif)
    script = [sys.executable, ROOT / "scripts" / "stylize.py", "--run", finished]
    done = subprocess.run(
        [*script, "--images", content, "--out", tmp_path / "out", "--size", "64"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.split() == [str(tmp_path / f"out/{n}.png") for n in ("china", "turned")]
    shapes = [Image.open(tmp_path / "out" / f"{n}.png").size for n in ("china", "turned")]
    assert shapes == [(64, 43), (43, 64)]

    written = list(stylize_folder(finished, content, None, 64))
    assert [path.name for path in written] == ["style.png", "china.png", "turned.png"]
    network = load(finished)
    pixels = np.array(Image.open(finished / "stylized" / "content" / "china.png"))
    with torch.no_grad():
        output = network(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())
    expected = output[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.array(Image.open(finished / "stylized" / "china.png")), expected)

    Image.fromarray(np.zeros((7, 30, 3), np.uint8)).save(content / "a_strip.png")
    with pytest.raises(
        UserError, match=r"a_strip.png: 30 x 7 pixels at the size asked for; expected at least 8"
    ):
        list(stylize_folder(finished, content, tmp_path / "out", None))
    photograph.save(content / "china.png")
    with pytest.raises(UserError, match="two images differ only in their suffix"):
        list(stylize_folder(finished, content, tmp_path / "out", None))
    with pytest.raises(UserError, match=r"--images=.*no_folder: there is no such folder"):
        list(stylize_folder(finished, tmp_path / "no_folder", tmp_path / "out", None))


@pytest.mark.slow
def test_a_run_is_evaluated_again_and_exported(files: Path, finished: Path, tmp_path: Path) -> None:
    run(files, "evaluate.py", f"run={finished}")
    first, second = (
        [e["total_loss"] for e in result(finished)["evaluations"][part]]
        for part in (slice(0, 2), slice(2, 4))
    )
    assert first == second
    run(files, "scripts/export.py", finished, "--out", tmp_path, "--pt2", "--onnx")
    network = load(tmp_path)
    assert "tags: [image-to-image]" in (tmp_path / "README.md").read_text()
    images = torch.rand(3, 3, 32, 24) * 255
    with torch.no_grad():
        expected = network(images)
        program = torch.export.load(tmp_path / "model.pt2").module()(images)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (onnx,) = session.run(["images_out"], {"images": images.numpy()})
    for found in (program, torch.from_numpy(onnx)):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_real_features_and_a_real_style_train(files: Path, tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip("the paintings and the weights of VGG16 are not available")
    style, features = DATA / "style/starry_night.jpg", DATA / "vgg16_features_conv4_3_fp16.pth"
    line = [*options(files, "norm=in", "trainer.max_steps=40"), f"run_dir={tmp_path}"]
    run(files, "train.py", *line, f"task.style={style}", f"task.features={features}")
    losses = [row["loss"] for row in rows(tmp_path) if row["kind"] == "train"]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
