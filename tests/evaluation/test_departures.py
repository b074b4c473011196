"""Departures of a run from the paper, computed from its config item by item."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.tasks.classification.departures import departures as departures_of

Compose = Callable[..., ExperimentConfig]
HE_ET_AL = "shorter side from [256, 480], 224 crop, flip, PCA lighting std 0.1"
OFFICIAL = {
    "item": "augmentation",
    "paper": HE_ET_AL,
    "ours": "random resized crop (area 0.08-1, aspect 0.75-1.33), flip, PCA lighting std 0.1",
}


def departures(config: ExperimentConfig, train: int = 1_281_167) -> list[dict[str, str]]:
    return departures_of(config, {"train": {"samples": train}, "val": {"samples": 50_000}})


def test_an_incomplete_imagenet_is_a_departure(composed: Compose) -> None:
    fewer_images = {"item": "train images", "paper": "1281167", "ours": "1000"}
    assert departures(composed(), train=1000) == [OFFICIAL, fewer_images]
    assert fewer_images not in departures(composed("data=digits"), train=1000)


def test_the_warmup_of_batch_renormalization_is_a_departure(composed: Compose) -> None:
    paper, ours = items_of(composed("norm=brn"))["warm-up of batch renormalization"]
    assert paper == "not stated"
    assert ours == "{'warmup_steps': 5000, 'r_steps': 40000, 'd_steps': 25000}"


def items_of(config: ExperimentConfig) -> dict[str, tuple[str, str]]:
    listed = departures(config)
    items = {d["item"]: (d["paper"], d["ours"]) for d in listed}
    assert len(items) == len(listed), "an item is listed twice"
    return items


def test_the_papers_8x32_departs_only_in_the_augmentation(composed: Compose) -> None:
    for norm in ("bn", "gn", "sn"):
        assert departures(composed(f"norm={norm}")) == [OFFICIAL]


@pytest.mark.parametrize(
    ("batch", "lr"),
    [
        ("8x16", "0.05"), ("8x8", "0.025"), ("8x4", "0.0125"), ("8x2", "0.00625"),
        ("8x1", "0.003125"), ("1x8", "0.003125"), ("1x16", "0.00625"), ("1x32", "0.0125"),
    ],
)  # fmt: skip
def test_other_settings_scale_the_learning_rate(composed: Compose, batch: str, lr: str) -> None:
    for norm in ("bn", "sn"):
        items = items_of(composed(f"batch={batch}", f"norm={norm}"))
        assert items.keys() == {"augmentation", "initial learning rate"}
        assert items["initial learning rate"] == ("0.1", lr)


def test_the_papers_own_augmentation_is_no_departure(composed: Compose) -> None:
    assert departures(composed("augment=he2016")) == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data=digits"], {"data": ("imagenet", "digits"), "image size": ("224", "16"),
                           "augmentation": (HE_ET_AL, "crop after zero-padding by 1, no flip")}),
        (["model=resnet50_mini"], {"model": ("resnet50", "resnet50_mini")}),
        (["+model.args.stem_width=32"], {"model arguments": ("{}", "{'stem_width': 32}")}),
        (["data.subset=0.1"], {"share of the training set": ("1.0", "0.1")}),
        (["data.classes=100"], {"classes": ("None", "100")}),
        (["data.decode=fast"], {"pixels of resized images": ("exact", "fast")}),
        (["data.image_size=192"], {"image size": ("224", "192")}),
        (["trainer.epochs=90"], {"epochs": ("100", "90")}),
        (["trainer.max_steps=10"], {"stopped after steps": ("None", "10")}),
        (["protocol.base_lr=0.2"], {"initial learning rate": ("0.1", "0.2")}),
        (["protocol.lr_milestones=[0.5]"],
         {"learning rate drops after epochs": ("[30, 60, 90]", "[50]")}),
        (["protocol.lr_factor=0.2"], {"learning rate drops by": ("0.1", "0.2")}),
        (["protocol.momentum=0.8"], {"momentum": ("0.9", "0.8")}),
        (["protocol.weight_decay=5e-5"], {"weight decay": ("0.0001", "5e-05")}),
        (["protocol=official_code"],
         {"dropout": ("0.0", "0.5"), "last gamma of a block": ("1", "0")}),
        (["trainer.precision=bf16"], {"precision": ("fp32", "bf16")}),
        (["calibration.estimator=population"],
         {"estimator of the batch average": ("mean_of_variances", "population")}),
        (["calibration.samples=all"], {"samples of the batch average": ("50000", "all")}),
        (["data.resize_size=240"], {"resize size": ("256", "240")}),
        (["data.mean=[0.5,0.5,0.5]"],
         {"mean of the images": ("[0.485, 0.456, 0.406]", "[0.5, 0.5, 0.5]")}),
        (["data.std=[0.5,0.5,0.5]"],
         {"std of the images": ("[0.229, 0.224, 0.225]", "[0.5, 0.5, 0.5]")}),
        (["norm.test_statistics=moving_average"],
         {"test statistics": ("batch_average", "moving_average")}),
        (["norm=bn", "norm.target=sn_imagenet.norms.SyncBatchNorm2d"],
         {"normalization layer": ("BatchNorm2d", "sn_imagenet.norms.SyncBatchNorm2d")}),
        (["augment=none"], {"augmentation": (HE_ET_AL, "no crop, no flip")}),
        (["batch.gpus=4", "batch.samples_per_gpu=64"],
         {"setting": ("one of Table 2's", "4x64")}),
        (["norm=gn", "norm.args.num_groups=16"],
         {"normalization arguments": ("{'num_groups': 32}", "{'num_groups': 16}")}),
        (["norm.args.omega=[in,ln]"],
         {"normalization arguments": ("{'omega': ['in', 'ln', 'bn']}", "{'omega': ['in', 'ln']}")}),
    ],
)  # fmt: skip
def test_each_changed_option_is_listed(
    composed: Compose, overrides: list[str], expected: dict[str, tuple[str, str]]
) -> None:
    items = items_of(composed(*overrides))
    assert items == {"augmentation": (OFFICIAL["paper"], OFFICIAL["ours"]), **expected}


@pytest.mark.parametrize(
    "overrides",
    [["seed=3"], ["runs_dir=elsewhere"], ["trainer.replicas_per_pass=2"],
     ["trainer.eval_batch_size=3"], ["trainer.log_every=1"], ["trainer.device=cpu"],
     ["evaluate=false"],
     ["batch=8x2", "protocol.lr_reference_batch=16"]],  # 0.1 in every setting, as it is written
)  # fmt: skip
def test_neither_how_a_run_is_carried_out_nor_a_fixed_learning_rate_is_a_departure(
    composed: Compose, overrides: list[str]
) -> None:
    assert departures(composed(*overrides)) == [OFFICIAL]
