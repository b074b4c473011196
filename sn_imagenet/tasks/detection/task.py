"""Detection: torchvision's losses, SGD by steps, COCO's AP."""

from __future__ import annotations

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
from sn_imagenet.data.loaders import EvalBatchSampler
from sn_imagenet.data.seeding import derive_seed, epoch_order, seeded
from sn_imagenet.distributed import Batch, Microbatch, print_rank0, rank, world_size
from sn_imagenet.errors import ConfigError
from sn_imagenet.models import SavedWeights, load_weights
from sn_imagenet.norms import norm_layers
from sn_imagenet.runs.scores import Score
from sn_imagenet.tasks.detection.coco import describe, open_annotations
from sn_imagenet.tasks.detection.departures import departures
from sn_imagenet.tasks.detection.evaluator import CocoEvaluator, category_csv, detections_json
from sn_imagenet.tasks.detection.images import DetectionBatch, DetectionDataset
from sn_imagenet.tasks.detection.models import C4Head, build_detector
from sn_imagenet.tasks.detection.sampling import CalibrationSampler, DetectionLoader, GroupSampler
from sn_imagenet.tasks.task import Clock, Losses, Optimization, Task

LOSSES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")


class Detection(Task):
    """Faster and Mask R-CNN on data in COCO's format.

    A forward pass holds one replica, padded by itself, as a GPU of the paper's does. torchvision
    draws the samples of its RPN and of its RoIs from the global generator.
    """

    score = Score("ap", "AP", "%")
    sums: ClassVar[tuple[str, ...]] = LOSSES
    replicas_per_pass = 1
    uses_global_rng = True
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
        _locations(config)  # an error before any run of a sweep starts
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
        parts = {}
        for part, (folder, file) in _locations(config).items():
            annotations = open_annotations(file, folder)
            print_rank0(f"{part}: {describe(annotations)}")
            parts[part] = (annotations, folder)
        (train, train_folder), (val, val_folder) = parts["train"], parts["val"]
        if train.names.tolist() != val.names.tolist():
            raise DataError(
                "training and validation annotations have different categories "
                f"({len(train.names)} and {len(val.names)}); expected the same names in the same "
                "order of ids"
            )
        if self.masks and not (train.has_masks and val.has_masks):
            raise DataError(
                f"model={config.model.name}: some annotations of data={config.data.name} have no "
                "segmentation; use model=faster_rcnn_fpn (or _mini)"
            )
        chosen = train.trainable
        if config.data.subset is not None:
            count = round(config.data.subset * len(chosen))
            chosen = np.sort(chosen[epoch_order(len(chosen), 0, 0)[:count].numpy()])
        options: dict[str, Any] = {"seed": config.seed, "masks": self.masks}
        datasets: Any = (
            DetectionDataset(
                train, train_folder, chosen, training=True, flip=config.augment.flip, **options
            ),
            DetectionDataset(val, val_folder, np.arange(len(val)), training=False, **options),
        )
        fingerprint = {
            part: dataset.fingerprint()
            for part, dataset in zip(("train", "val"), datasets, strict=True)
        }
        return DataSets(datasets[0], datasets[1], tuple(train.names.tolist()), fingerprint)

    def network(self, data: DataSets) -> nn.Module:
        config = self.config
        if config.norm.head is not None and config.model.name.startswith("faster_rcnn_c4"):
            raise ConfigError(
                f"norm.head={config.norm.head['name']}: the head of {config.model.name} is the "
                "ResNet's last stage, with the method of norm="
            )
        if config.norm.name == "frozen_bn" and config.init is None:
            raise ConfigError(
                "norm=frozen_bn: its statistics come from a trained classifier; use init=RUN, a "
                "run with norm=bn"
            )
        head = self.head_norm()
        network = build_detector(
            config.model, config.norm, head, config.data, config.protocol, len(data.classes),
            config.seed,
        )  # fmt: skip
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
        parts: dict[str, Any] = {"": network.backbone.body}
        if isinstance(head, C4Head):
            parts["layer4."] = head
        for prefix, part in parts.items():
            others = ("fc.", *(other for other in parts if other and other != prefix))
            weights = {
                key: value
                for key, value in saved.weights.items()
                if key.startswith(prefix) and not key.startswith(others)
            }
            load_weights(part, replace(saved, weights=weights))
        return []

    def check(self, network: nn.Module, data: DataSets) -> None:
        GroupSampler(**self._sampler_options(data), rank=0, world_size=1)  # enough images

    def _sampler_options(self, data: Any) -> dict[str, Any]:
        return {
            "ratios": data.train.aspect_ratios,
            "replicas": self.config.batch.gpus,
            "samples_per_replica": self.config.batch.samples_per_gpu,
            "seed": self.config.seed,
        }

    def batches(self, phase: str, data: Any, device: torch.device) -> Any:
        sampler = GroupSampler(**self._sampler_options(data), rank=rank(), world_size=world_size())
        return DetectionLoader(data.train, sampler, self.config.data.workers, device, True)

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

        optimizer = torch.optim.SGD(
            parameter_groups(network, config),
            lr=config.initial_lr,
            momentum=protocol.momentum,
            fused=True,
        )
        return {"optimizer": Optimization(optimizer, learning_rate)}

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
        seed = derive_seed("calibration", self.config.calibration.seed, batch.indices[0])
        with seeded(seed, device if device.type == "cuda" else None):
            network(list(batch.images), list(batch.targets))

    def calibration_loader(self, train: Any, **options: Any) -> DetectionLoader:
        sampler = CalibrationSampler(
            train.aspect_ratios, options["minibatch"], options["samples"], options["seed"],
            options["rank"], options["world_size"], options["skip"],
        )  # fmt: skip
        return DetectionLoader(train, sampler, options["workers"], options["device"])

    def evaluation_batches(
        self, data: Any, batch_size: int, device: torch.device
    ) -> DetectionLoader:
        """One image at a time, since the padding of a batch enters IN's and LN's statistics."""
        sampler = EvalBatchSampler(len(data.val), 1, rank(), world_size())
        return DetectionLoader(data.val, sampler, self.config.data.workers, device)

    def evaluator(
        self, data: Any, device: torch.device, batch_size: int, artifacts: Mapping[str, str]
    ) -> CocoEvaluator:
        return CocoEvaluator(data.val.annotations, self.masks)

    def write_artifacts(
        self, data: Any, evaluators: Mapping[str, CocoEvaluator], artifacts: Mapping[str, str]
    ) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        if name := artifacts.get("per_class"):
            files[name] = category_csv(list(data.classes), evaluators)
        if name := artifacts.get("detections"):
            for label, evaluator in evaluators.items():
                file = (
                    Path(name)
                    if len(evaluators) == 1
                    else Path(name).with_stem(f"{Path(name).stem}_{label}")
                )
                files[str(file)] = detections_json(evaluator.detections)
        return files

    def describe(self, numbers: Mapping[str, Any]) -> str:
        parts = {"": numbers["ap"], "masks ": numbers.get("mask_ap", "")}
        return ", ".join(
            f"{part}{'-' if value is None else format(value, '.2f')}"
            for part, value in parts.items()
            if value != ""
        )

    def departures(self, fingerprint: Mapping[str, Any]) -> list[dict[str, str]]:
        return departures(self.config, fingerprint)


def _locations(config: ExperimentConfig) -> dict[str, tuple[Path, Path]]:
    """(folder of images, annotations) of the training and the validation data.

    Raises:
        ConfigError: they are not given.
    """
    data = config.data
    if data.source == "coco":
        if data.root is None:
            raise ConfigError(
                "data.root=DIR (or COCO_ROOT) is missing: the folder with train2017, val2017 and "
                "annotations"
            )
        root = Path(data.root)
        return {
            part: (root / f"{part}2017", root / "annotations" / f"instances_{part}2017.json")
            for part in ("train", "val")
        }
    if data.source != "coco_format":
        raise ConfigError(f"data={data.name}: task=detection needs data=coco or data=coco_format")
    given = {
        key: getattr(data, key) for key in ("train", "train_annotations", "val", "val_annotations")
    }
    if missing := [f"data.{key}" for key, value in given.items() if value is None]:
        raise ConfigError(
            f"{missing[0]}= is missing: data=coco_format needs data.train, data.train_annotations, "
            "data.val and data.val_annotations"
        )
    return {
        part: (Path(given[part]), Path(given[f"{part}_annotations"])) for part in ("train", "val")
    }


def parameter_groups(network: nn.Module, config: ExperimentConfig) -> list[dict[str, Any]]:
    """The trained parameters by weight decay and learning rate: gamma, beta, lambda, the biases of
    convolutions and linear layers, and their weights."""
    protocol, own = config.protocol, config.protocol.detection
    assert own is not None, "checked before"
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    norms = norm_layers(network)
    lambda_decay = protocol.lambda_weight_decay
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        module, _, kind = name.rpartition(".")
        if module in norms and kind == "weight":
            options = (own.norm_weight_decay, 1.0)
        elif module in norms and kind == "bias":
            options = (own.norm_weight_decay, own.beta_lr_scale)
        elif kind in ("mean_weight", "var_weight"):
            decay = protocol.weight_decay if lambda_decay is None else lambda_decay
            options = (decay, 1.0)
        elif kind == "bias":
            options = (own.bias_weight_decay, own.bias_lr_scale)
        else:
            options = (protocol.weight_decay, 1.0)
        groups.setdefault(options, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in groups.items()
    ]
