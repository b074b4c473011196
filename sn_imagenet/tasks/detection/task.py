"""Detection: torchvision's losses, SGD by steps, COCO's AP."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from sn_imagenet.config import DetectionProtocolConfig, ExperimentConfig
from sn_imagenet.data.datasets import DataSets
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.loaders import BatchLoader, eval_batches
from sn_imagenet.data.seeding import epoch_order, seeded_pass
from sn_imagenet.distributed import Batch, Microbatch, print_rank0, rank, world_size
from sn_imagenet.errors import ConfigError
from sn_imagenet.models import SavedWeights, load_weights
from sn_imagenet.runs.scores import Score
from sn_imagenet.tasks.detection.coco import Annotations, open_annotations
from sn_imagenet.tasks.detection.departures import departures
from sn_imagenet.tasks.detection.evaluator import CocoEvaluator, category_csv
from sn_imagenet.tasks.detection.images import DetectionBatch, DetectionDataset
from sn_imagenet.tasks.detection.models import C4Head, build_detector
from sn_imagenet.tasks.detection.sampling import CalibrationSampler, GroupSampler
from sn_imagenet.tasks.task import Clock, Losses, Optimization, Task, sgd

PARTS = ("train", "val")
LOSSES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")


class Detection(Task):
    """Faster and Mask R-CNN on data in COCO's format.

    A forward pass holds one replica, padded by itself, as a GPU of the paper's does. torchvision
    draws the samples of its RPN and of its RoIs from the global generator.
    """

    score = Score("ap", "AP", "%")
    sums: ClassVar[tuple[str, ...]] = LOSSES
    replica_by_replica = True
    has_heads = True
    artifacts = ("per_class", "detections")
    requires: ClassVar[Mapping[str, str]] = {"pycocotools": "detection"}

    def __init__(self, config: ExperimentConfig) -> None:
        super().__init__(config)
        if config.protocol.detection is None:
            raise ConfigError(
                f"protocol={config.protocol.name}: task=detection needs a protocol of its own: "
                "setting1, setting2, setting3, detectron or official_detection"
            )
        self.protocol: DetectionProtocolConfig = config.protocol.detection
        self.masks = config.model.name.startswith("mask_rcnn")
        if self.masks:
            self.sums = (*LOSSES, "loss_mask")  # type: ignore[misc]  # not of the class

    def datasets(self) -> DataSets:
        config = self.config
        if config.data.classes is not None:
            raise ConfigError(f"data.classes={config.data.classes}: not for task=detection")
        if config.augment.crop != "none" or config.augment.lighting_std:
            raise ConfigError(
                f"augment={config.augment.name}: task=detection supports augment=flip and "
                "augment=none"
            )
        masks, (train, val) = self.masks, _annotations(config)
        names = train[0].names
        if names != val[0].names:
            raise DataError(
                "training and validation annotations have different categories "
                f"({len(names)} and {len(val[0].names)}); expected the same names in the same "
                "order of ids"
            )
        if masks and not (train[0].has_masks and val[0].has_masks):
            raise DataError(
                f"model={config.model.name}: some annotations of data={config.data.name} have no "
                "segmentation; use model=faster_rcnn_fpn (or _mini)"
            )
        chosen = train[0].trainable
        if config.data.subset is not None:
            count = round(config.data.subset * len(chosen))
            chosen = np.sort(chosen[epoch_order(len(chosen), 0, 0)[:count].numpy()])
        flip, seed = config.augment.flip, config.seed
        datasets: dict[str, Any] = {
            "train": DetectionDataset(*train, chosen, seed, training=True, flip=flip, masks=masks),
            "val": DetectionDataset(*val, np.arange(len(val[0]))),
        }
        fingerprint = {part: dataset.fingerprint() for part, dataset in datasets.items()}
        return DataSets(**datasets, classes=tuple(names), fingerprint=fingerprint)

    def network(self, data: DataSets) -> nn.Module:
        config = self.config
        if config.norm.head is not None and config.model.name.startswith("faster_rcnn_c4"):
            raise ConfigError(
                f"norm.head={config.norm.head['name']}: the head of {config.model.name} is the "
                "ResNet's last stage, with the method of norm="
            )
        head = config.norm.head
        if head is not None and head["name"] == "frozen_bn":
            raise ConfigError(
                "norm.head=frozen_bn: a classifier has no statistics for heads; expected a method "
                "that is trained, such as norm.head=gn"
            )
        if config.norm.name == "frozen_bn" and config.init is None:
            raise ConfigError(
                "norm=frozen_bn: its statistics come from a trained classifier; use init=RUN, a "
                "run with norm=bn"
            )
        network: Any = build_detector(config, len(data.classes))
        if config.init is not None:
            network.backbone.freeze(self.protocol.frozen_stages)
        return network

    def load_initial(self, network: Any, data: DataSets, saved: SavedWeights) -> list[str]:
        """The ResNet of a classifier, or a whole detector; with other classes, the predictors keep
        their initial weights."""
        if saved.task == self.config.task["name"]:
            new: list[str] = []
            if list(saved.classes) != list(data.classes):
                keys = network.state_dict()
                new = [k for k in keys if "predictor" in k and "conv5_mask" not in k]
            load_weights(network, saved, new=new)
            return ["new predictors, because its classes differ"] if new else []
        head = network.roi_heads.box_head
        last_stage = {"layer4": head.layer4} if isinstance(head, C4Head) else {}
        resnet = nn.ModuleDict({**network.backbone.body, **last_stage})
        weights = {k: v for k, v in saved.weights.items() if k.partition(".")[0] in resnet}
        load_weights(resnet, replace(saved, weights=weights))
        return []

    def check_options(self) -> None:
        _locations(self.config)

    def check(self, network: nn.Module, data: DataSets) -> None:
        self._sampler(data)  # requires enough images

    def _sampler(self, data: Any) -> GroupSampler:
        batch, ranks = self.config.batch, {"rank": rank(), "world_size": world_size()}
        ratios, seed = data.train.aspect_ratios, self.config.seed
        return GroupSampler(ratios, batch.gpus, batch.samples_per_gpu, **ranks, seed=seed)

    def batches(self, phase: str, data: Any, device: torch.device) -> BatchLoader:
        workers = self.config.data.workers
        return BatchLoader(data.train, self._sampler(data), workers, device)

    def optimizations(self, network: nn.Module, clock: Clock) -> dict[str, Optimization]:
        """SGD. Milestones are fractions of the training, rounded to steps."""
        config, protocol, own = self.config, self.config.protocol, self.protocol
        milestones = [round(part * clock.total_steps) for part in protocol.lr_milestones]

        def learning_rate(step: int) -> float:
            passed = sum(step >= milestone for milestone in milestones)
            rate = config.initial_lr * protocol.lr_factor**passed
            if step < own.warmup_steps:
                share = step / own.warmup_steps
                rate *= own.warmup_factor * (1 - share) + share
            return rate

        decay, lambda_decay = protocol.weight_decay, protocol.lambda_weight_decay
        of_lambda = (decay if lambda_decay is None else lambda_decay, 1.0)
        in_norms = {
            "weight": (own.norm_weight_decay, 1.0),
            "bias": (own.norm_weight_decay, own.beta_lr_scale),
            "mean_weight": of_lambda,
            "var_weight": of_lambda,
        }
        elsewhere = {"bias": (own.bias_weight_decay, own.bias_lr_scale)}

        def options_of(kind: str, in_norm: bool) -> dict[str, float]:
            options = (in_norms if in_norm else elsewhere).get(kind, (decay, 1.0))
            return dict(zip(("weight_decay", "lr_scale"), options, strict=True))

        return sgd(network, config, learning_rate, options_of)

    def losses(
        self,
        network: Callable[..., Any],
        microbatch: Microbatch[DetectionBatch],
        step: int,
        phase: str,
    ) -> Losses:
        batch = microbatch.batch
        losses = network(list(batch.images), list(batch.targets))
        sums = {name: losses[name].detach() * len(batch) for name in self.sums}
        total: Any = sum(losses[name] for name in self.sums)
        return Losses(total, sums)

    def warm_up_batch(self, samples: int) -> Batch:
        side = 64
        target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
        if self.masks:
            target["masks"] = torch.ones(1, side, side, dtype=torch.uint8)
        image = torch.zeros(3, side, side, dtype=torch.uint8)
        return DetectionBatch((image,) * samples, (target,) * samples, (0,) * samples)

    def forward(self, network: nn.Module, batch: DetectionBatch) -> None:
        """A training-mode pass with its sampled RoIs; frozen layers keep their statistics."""
        network.train()
        device = batch.images[0].device
        key = self.config.calibration.seed, batch.indices[0]
        with seeded_pass(True, device, "calibration", *key):
            network(list(batch.images), list(batch.targets))

    def calibration_loader(self, train: Any, **options: Any) -> BatchLoader:
        workers, device = options.pop("workers"), options.pop("device")
        sampler = CalibrationSampler(train.aspect_ratios, **options)
        return BatchLoader(train, sampler, workers, device, persistent=False)

    def evaluation_batches(self, data: Any, batch_size: int, device: torch.device) -> BatchLoader:
        """One image at a time, since the padding of a batch enters IN's and LN's statistics."""
        batches = eval_batches(len(data.val), 1, rank(), world_size())
        return BatchLoader(data.val, batches, self.config.data.workers, device)

    def evaluator(
        self, data: Any, device: torch.device, batch_size: int, artifacts: Mapping[str, str]
    ) -> CocoEvaluator:
        return CocoEvaluator(data.val.annotations, self.masks)

    def write_artifacts(
        self, data: Any, evaluators: Mapping[str, CocoEvaluator], artifacts: Mapping[str, str]
    ) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        if name := artifacts.get("per_class"):
            files[name] = category_csv(evaluators).encode()
        if name := artifacts.get("detections"):
            file = Path(name)
            for label, evaluator in evaluators.items():
                named = file.with_stem(f"{file.stem}_{label}") if len(evaluators) > 1 else file
                files[str(named)] = json.dumps(evaluator.detections).encode()
        return files

    def describe(self, numbers: Mapping[str, Any]) -> str:
        shown = {"ap": "", "mask_ap": "masks "}
        return ", ".join(
            f"{part}{'-' if numbers[key] is None else format(numbers[key], '.2f')}"
            for key, part in shown.items()
            if key in numbers
        )

    def departures(self, fingerprint: Mapping[str, Any]) -> list[dict[str, str]]:
        return departures(self.config, fingerprint)


def _locations(config: ExperimentConfig) -> list[tuple[Path, Path]]:
    """The annotations and the folder of images for training, and those for validation.

    Raises:
        ConfigError: they are not given.
    """
    data = config.data
    if data.source not in ("coco", "coco_format"):
        raise ConfigError(f"data={data.name}: task=detection needs data=coco or data=coco_format")
    if data.source == "coco" and data.root is None:
        raise ConfigError(
            "data.root=DIR (or COCO_ROOT) is missing: the folder with train2017, val2017 and "
            "annotations"
        )
    keys = [key for part in PARTS for key in (part, f"{part}_annotations")]
    if missing := [key for key in keys if getattr(data, key) is None]:
        raise ConfigError(
            f"data.{missing[0]}= is missing: data=coco_format needs "
            f"{', '.join(f'data.{key}' for key in keys)}"
        )
    folder, file, val_folder, val_file = (Path(getattr(data, key)) for key in keys)
    return [(file, folder), (val_file, val_folder)]


def _annotations(config: ExperimentConfig) -> list[tuple[Annotations, Path]]:
    """The annotations and the folder of images for training, and those for validation.

    Raises:
        DataError: they cannot be used.
    """
    found = []
    for part, (file, folder) in zip(PARTS, _locations(config), strict=True):
        found.append((open_annotations(file, folder), folder))
        print_rank0(f"{part}: {found[-1][0].summary}")
    return found
