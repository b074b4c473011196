"""Image classification: cross entropy, SGD by epochs, top-1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.data.datasets import DataSets
from sn_imagenet.distributed import Microbatch, convolution_dtype
from sn_imagenet.errors import ConfigError
from sn_imagenet.models import SavedWeights, build_model, classifier_of, load_weights
from sn_imagenet.norms import SwitchNorm2d, norm_layers
from sn_imagenet.runs.scores import TOP1
from sn_imagenet.tasks.classification.accuracy import AccuracyEvaluator, correct_counts
from sn_imagenet.tasks.classification.departures import departures
from sn_imagenet.tasks.classification.detail import Detail, classes_csv, logits_npz
from sn_imagenet.tasks.classification.dropout import PlacedDropout
from sn_imagenet.tasks.task import Clock, Losses, Optimization, Task, sgd


class Classification(Task):
    """Cross entropy over the classes of the data set, by the protocol of the paper (Sec. 4.1)."""

    score = TOP1
    sums = ("correct",)
    capturable = True
    artifacts = ("per_class", "save_logits")

    _dropout: PlacedDropout | None = None

    def network(self, data: DataSets) -> nn.Module:
        config = self.config
        network = build_model(
            config.model, config.norm, config.protocol, len(data.classes), config.seed
        )
        if config.protocol.dropout:
            classifier = network.get_classifier()  # type: ignore[operator]
            self._dropout = PlacedDropout(classifier, config.protocol.dropout, config.seed)
        return network

    def load_initial(self, network: nn.Module, data: DataSets, saved: SavedWeights) -> list[str]:
        """As of any task; but with other classes, the last layer keeps its initial weights."""
        head, state = classifier_of(network), network.state_dict()
        own = {key: value for key, value in state.items() if key.rpartition(".")[0] == head}
        fits = all(
            key in saved.weights and saved.weights[key].shape == own[key].shape for key in own
        )
        if fits and list(saved.classes or data.classes) == list(data.classes):
            load_weights(network, saved)
            return []
        load_weights(network, saved, new=own)
        return [f"a new {head}, because its classes differ"]

    @property
    def image_dtype(self) -> torch.dtype:
        """As autocast gives images to the first convolution."""
        return convolution_dtype(self.config.trainer.precision)

    def check(self, network: nn.Module, data: DataSets) -> None:
        if self.config.trainer.epochs is None:
            raise ConfigError("trainer.epochs=null: task=classification trains by epochs")
        _check_images_fit(network, self.config)

    def optimizations(self, network: nn.Module, clock: Clock) -> dict[str, Optimization]:
        """SGD. Milestones are fractions of the training, rounded to epochs: 0.3 of 100 epochs is
        epoch 30, and of 8 epoch 2."""
        config, protocol = self.config, self.config.protocol
        epochs = config.trainer.epochs
        assert epochs is not None, "checked before"
        milestones = [max(1, math.floor(part * epochs + 0.5)) for part in protocol.lr_milestones]

        def learning_rate(step: int) -> float:
            epoch = step // clock.steps_per_epoch
            passed = sum(epoch >= milestone for milestone in milestones)
            return config.initial_lr * protocol.lr_factor**passed

        own = dict(config.norm.own_parameters)
        layers = norm_layers(network).values()
        if protocol.lambda_weight_decay is not None and any(
            isinstance(layer, SwitchNorm2d) for layer in layers
        ):
            own.setdefault("weight_decay", protocol.lambda_weight_decay)

        def options_of(kind: str, in_norm: bool) -> dict[str, float]:
            """Normalization layers may have options for parameters besides gamma and beta."""
            is_own = in_norm and kind not in ("weight", "bias")
            return {"weight_decay": protocol.weight_decay, **(own if is_own else {})}

        return sgd(network, config, learning_rate, options_of)

    def losses(
        self, network: Callable[..., Any], microbatch: Microbatch[ImageBatch], step: int, phase: str
    ) -> Losses:
        images, labels = microbatch.batch
        if self._dropout is not None:
            total = self.config.batch.total
            self._dropout.set_position(step, microbatch.positions, total)
        logits = network(images)
        loss = F.cross_entropy(logits, labels)
        return Losses(loss, {"correct": correct_counts(logits.detach(), labels)[0]})

    def metrics(self, sums: Mapping[str, float], samples: int) -> dict[str, float]:
        return {"top1": 100 * sums["correct"] / samples}

    def evaluator(
        self, data: DataSets, device: torch.device, batch_size: int, artifacts: Mapping[str, str]
    ) -> AccuracyEvaluator:
        detail = None
        if artifacts:
            assert data.val is not None
            classes, samples = len(data.classes), len(data.val)
            keep_logits = "save_logits" in artifacts
            detail = Detail(classes, samples, batch_size, device, keep_logits)
        return AccuracyEvaluator(device, detail)

    def write_artifacts(
        self,
        data: DataSets,
        evaluators: Mapping[str, AccuracyEvaluator],
        artifacts: Mapping[str, str],
    ) -> dict[str, bytes]:
        details = {name: e.detail for name, e in evaluators.items() if e.detail is not None}
        writers = {
            "per_class": lambda: classes_csv(data.classes, details).encode(),
            "save_logits": lambda: logits_npz(details),
        }
        return {file: writers[kind]() for kind, file in artifacts.items()}

    def describe(self, numbers: Mapping[str, Any]) -> str:
        return f"{numbers['top1']:.2f} ({numbers['top1_correct']} of {numbers['seen']})"

    def departures(self, fingerprint: Mapping[str, Any]) -> list[dict[str, str]]:
        return departures(self.config, fingerprint)


@torch.no_grad()
def _check_images_fit(network: nn.Module, config: ExperimentConfig) -> None:
    """Require that the network accepts images of the data's size.

    Raises:
        ConfigError: it does not, because it is for another size or its normalization layers do not
            get feature maps.
    """
    side = config.data.image_size
    try:
        network.eval()(torch.zeros(1, 3, side, side))
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"model.name={config.model.name}: images of {side} x {side} pixels do not pass through "
            f"it with norm={config.norm.name} ({str(error).splitlines()[0]}); expected a "
            "convolutional network for images of data.image_size"
        ) from error
