"""Stylization: a network that paints every image in the style of one, by Johnson et al."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.config.checks import require, require_one_of
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.data.datasets import DataSets
from sn_imagenet.distributed import Microbatch, all_reduce_sum
from sn_imagenet.errors import ConfigError
from sn_imagenet.models.build import build_network
from sn_imagenet.models.transform_net import LEAST_SIDE, TRANSFORM_NET, TransformNet
from sn_imagenet.runs.scores import Score
from sn_imagenet.tasks.stylization.perceptual import LAYERS, SCALES, PerceptualLoss, load_features
from sn_imagenet.tasks.stylization.stylize import read_resized
from sn_imagenet.tasks.task import Clock, Losses, Optimization, Task, differences


class Stylization(Task):
    """The weighted sum of feature and style loss, with Adam at a constant learning rate.
    ``configs/task/stylization.yaml`` describes the options and their sources."""

    score = Score("total_loss", "total loss", higher_is_better=False)
    sums = ("feature", "style")

    def __init__(
        self,
        config: ExperimentConfig,
        style: str | None,
        style_size: int | None,
        features: str | None,
        feature_scale: str | None,
        content_layer: str,
        content_weight: float | None,
        style_weight: float | None,
        tv_weight: float,
        learning_rate: float,
    ) -> None:
        super().__init__(config)
        if not style:
            raise ConfigError("task.style=null: give task.style=FILE, the style image")
        scale = feature_scale or ("pixels" if features else "unit")
        require_one_of("task.feature_scale", scale, list(SCALES))
        require_one_of("task.content_layer", content_layer, list(LAYERS))
        self.style, self.features, self.content_layer = style, features, content_layer
        self.scale, own = scale, SCALES[scale]
        self.numbers: dict[str, Any] = {
            "style_size": config.data.image_size if style_size is None else style_size,
            "content_weight": own.content_weight if content_weight is None else content_weight,
            "style_weight": own.style_weight if style_weight is None else style_weight,
            "tv_weight": tv_weight,
            "learning_rate": learning_rate,
        }
        for key, value in self.numbers.items():
            is_valid = isinstance(value, int | float) and 0 <= value < float("inf")
            require(is_valid, f"task.{key}={value}: expected a number of at least 0")
        self._loss: PerceptualLoss

    def datasets(self) -> DataSets:
        """The images, and the style and features, which the fingerprint covers too."""
        path, size = Path(self.style).expanduser(), self.numbers["style_size"]
        style = read_resized(path, size, LEAST_SIDE)
        data, features = super().datasets(), load_features(self.features)
        weights = b"".join(weight.numpy().tobytes() for weight in features.state_dict().values())
        for name, content in (("style", style.tobytes()), ("features", weights)):
            data.fingerprint[name] = {"sha256": hashlib.sha256(content).hexdigest()}
        pixels = torch.from_numpy(style).permute(2, 0, 1).float()
        self._loss = PerceptualLoss(features, SCALES[self.scale], pixels, self.content_layer)
        return data

    def network(self, data: DataSets) -> nn.Module:
        """With PyTorch's initialization of convolutions, as in pytorch/examples."""
        model, side = self.config.model, self.config.data.image_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            network = build_network(model, self.config.norm, num_classes=1)
        if not isinstance(network, TransformNet):
            raise ConfigError(f"model.name={model.name}: task=stylization needs {TRANSFORM_NET}")
        least = network.least_side
        require(side >= least, f"data.image_size={side}: expected at least {least}")
        return network

    def optimizations(self, network: nn.Module, clock: Clock) -> dict[str, Optimization]:
        rate = self.numbers["learning_rate"]
        adam = torch.optim.Adam(network.parameters(), lr=rate, fused=True)
        return {"adam": Optimization(adam, lambda step: rate)}

    def weighted_losses(self, output: Tensor, content: Tensor) -> dict[str, Tensor]:
        """``total``, ``feature`` and ``style`` of each image, [N], the last two weighted."""
        feature, style = self._loss.to(output.device)(output, content)
        feature = self.numbers["content_weight"] * feature
        style = self.numbers["style_weight"] * style
        total = feature + style
        if self.numbers["tv_weight"]:
            variation = self._loss.total_variation(output.float())
            total = total + self.numbers["tv_weight"] * variation
        return {"total": total, "feature": feature, "style": style}

    def losses(
        self, network: Callable[..., Any], microbatch: Microbatch[ImageBatch], step: int, phase: str
    ) -> Losses:
        images = microbatch.batch.images
        losses = self.weighted_losses(network(images), images)
        sums = {name: losses[name].detach().sum() for name in self.sums}
        return Losses(losses["total"].mean(), sums)

    def evaluator(
        self, data: DataSets, device: torch.device, batch_size: int, artifacts: Mapping[str, str]
    ) -> LossEvaluator:
        return LossEvaluator(self, device)

    @torch.no_grad()
    def pictures(self, network: nn.Module, data: DataSets, device: torch.device) -> dict[str, Any]:
        """The first four validation images, above what the network makes of them."""
        assert data.val is not None
        shown = [data.val[0, index][0] for index in range(min(4, len(data.val)))]
        images = torch.stack(shown).to(device)
        rows = torch.stack([images, network(images).float()]).permute(0, 3, 1, 4, 2)
        pixels = rows.flatten(2, 3).flatten(0, 1).clamp(0, 255).byte()
        return {"content and output": pixels.cpu().numpy()}

    def departures(self, fingerprint: Mapping[str, Any]) -> list[dict[str, str]]:
        """From Sec. 4.3 of the SN paper and, where it says nothing, Johnson et al.; the scale of
        the losses in Fig. 6(a) fits features of unit scale only."""
        config = self.config
        return differences(
            [
                ("data", "coco", config.data.name),
                ("image size", 256, config.data.image_size),
                ("iterations", 40_000, config.trainer.max_steps),
                ("epochs", None, config.trainer.epochs),
                ("setting", "1x4", config.batch.name),
                ("learning rate", 1e-3, self.numbers["learning_rate"]),
                ("content layer", "relu2_2", self.content_layer),
                ("weight of total variation", 0.0, self.numbers["tv_weight"]),
                ("scale of the features", "unit", self.scale),
                ("precision", "fp32", config.trainer.precision),
            ]
        )


class LossEvaluator:
    """``total_loss``, ``feature_loss``, ``style_loss``: means over images, summed in float64."""

    def __init__(self, task: Stylization, device: torch.device) -> None:
        self._task = task
        self._totals = torch.zeros(4, dtype=torch.float64, device=device)  # the last counts images

    def update(self, forward: Callable[..., Tensor], batch: ImageBatch) -> None:
        losses = self._task.weighted_losses(forward(batch.images), batch.images)
        self._totals[:3] += torch.stack([part.double().sum() for part in losses.values()])
        self._totals[3] += len(batch)

    def gather(self) -> None:
        all_reduce_sum(self._totals)

    def finish(self) -> dict[str, Any]:
        *losses, seen = self._totals.tolist()
        names = ("total_loss", "feature_loss", "style_loss")
        return {**{n: x / seen for n, x in zip(names, losses, strict=True)}, "seen": int(seen)}
