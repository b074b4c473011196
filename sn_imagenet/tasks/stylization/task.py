"""Stylization: a network that paints every image in the style of one, by Johnson et al."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.data.datasets import DataSets
from sn_imagenet.data.sources.images import read_image
from sn_imagenet.distributed import Microbatch, all_reduce_sum
from sn_imagenet.errors import ConfigError
from sn_imagenet.models.build import build_network
from sn_imagenet.models.transform_net import LEAST_SIDE
from sn_imagenet.runs.scores import Score
from sn_imagenet.tasks.stylization.perceptual import (
    LAYERS,
    SCALES,
    PerceptualLoss,
    load_features,
    total_variation,
    weights_hash,
)
from sn_imagenet.tasks.stylization.stylize import resized
from sn_imagenet.tasks.task import Clock, Losses, Optimization, Task

_SHOWN = 4  # validation images in the tracker


class Stylization(Task):
    """The weighted sum of feature and style loss, with Adam at a constant learning rate.

    Options, with the sources that disagree (P: the SN paper; J: Johnson's paper, JC: his code; E:
    pytorch/examples, fast_neural_style):

    Args:
        style: file of the style image.
        style_size: its longer side in pixels; None: ``data.image_size`` (JC: 256, as the images).
        features: file of VGG16's weights, see :func:`load_features`; None: torchvision's.
        feature_scale: ``unit`` or ``pixels``, the input that the features expect, with the loss
            weights 1e5 and 1e10 (E) or 1 and 5 (JC). None: ``pixels`` for a file, else ``unit``.
        content_layer: relu2_2 (J, E) or relu3_3 (JC).
        content_weight, style_weight: other loss weights than those of the scale.
        tv_weight: of the total variation; 0 (P, E), 1e-6 (JC), 1e-6 to 1e-4 (J).
        learning_rate: 1e-3 (J, JC, E).
    """

    score = Score("total_loss", "total loss", higher_is_better=False)
    sums = ("feature", "style")

    def __init__(
        self,
        config: ExperimentConfig,
        style: str | None = None,
        style_size: int | None = None,
        features: str | None = None,
        feature_scale: str | None = None,
        content_layer: str = "relu2_2",
        content_weight: float | None = None,
        style_weight: float | None = None,
        tv_weight: float = 0.0,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__(config)
        if not style:
            raise ConfigError("task.style is missing: give task.style=FILE, the style image")
        scale = feature_scale or ("pixels" if features else "unit")
        for key, value, known in (
            ("feature_scale", scale, SCALES),
            ("content_layer", content_layer, LAYERS),
        ):
            if value not in known:
                raise ConfigError(f"task.{key}={value}: expected one of {', '.join(known)}")
        self.scale = SCALES[scale]
        given = {"content_weight": content_weight, "style_weight": style_weight}
        chosen: dict[str, Any] = {
            **{k: getattr(self.scale, k) if v is None else v for k, v in given.items()},
            "tv_weight": tv_weight,
            "learning_rate": learning_rate,
        }
        for key, number in chosen.items():
            if not (isinstance(number, int | float) and 0 <= number < float("inf")):
                raise ConfigError(f"task.{key}={number}: expected a number of at least 0")
        self.weights = chosen
        self.style, self.features, self.content_layer = style, features, content_layer
        self.style_size = config.data.image_size if style_size is None else style_size
        self._loss: PerceptualLoss

    def datasets(self) -> DataSets:
        """The images, and the loss network, whose files the fingerprint covers."""
        for key, side in (
            ("data.image_size", self.config.data.image_size),
            ("task.style_size", self.style_size),
        ):
            if not (isinstance(side, int) and side >= LEAST_SIDE):
                raise ConfigError(f"{key}={side}: expected at least {LEAST_SIDE} pixels")
        style = resized(read_image(Path(self.style).expanduser()), self.style_size)
        if min(style.shape[:2]) < LEAST_SIDE:
            raise ConfigError(
                f"task.style={self.style}: its shorter side is below {LEAST_SIDE} pixels at "
                f"task.style_size={self.style_size}; use a larger size or another image"
            )
        data = super().datasets()
        features = load_features(self.features)
        data.fingerprint["style"] = {"sha256": hashlib.sha256(style.tobytes()).hexdigest()}
        data.fingerprint["features"] = {"sha256": weights_hash(features)}
        pixels = torch.from_numpy(style).permute(2, 0, 1).float()
        self._loss = PerceptualLoss(features, self.scale, pixels, self.content_layer)
        return data

    def network(self, data: DataSets) -> nn.Module:
        """PyTorch's initialization of convolutions, as in E."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return build_network(self.config.model, self.config.norm, num_classes=1)

    @torch.no_grad()
    def check(self, network: nn.Module, data: DataSets) -> None:
        side, name = self.config.data.image_size, self.config.model.name
        try:
            shape = list(network.eval()(torch.zeros(1, 3, side, side)).shape)
        except (ValueError, RuntimeError) as error:
            shape = [str(error).splitlines()[0]]
        if shape != [1, 3, side, side]:
            raise ConfigError(
                f"model.name={name}: makes {shape} of images [1, 3, {side}, {side}]; expected "
                "images of the same size, as of model=transform_net at data.image_size"
            )

    def optimizations(self, network: nn.Module, clock: Clock) -> dict[str, Optimization]:
        rate = self.weights["learning_rate"]
        adam = torch.optim.Adam(network.parameters(), lr=rate, fused=True)
        return {"adam": Optimization(adam, lambda step: rate)}

    def weighted_losses(self, output: Tensor, content: Tensor) -> dict[str, Tensor]:
        """``feature``, ``style`` and ``total``, each [N] with the weights applied."""
        feature, style = self._loss.to(output.device)(output, content)
        feature = self.weights["content_weight"] * feature
        style = self.weights["style_weight"] * style
        total = feature + style
        if self.weights["tv_weight"]:
            total = total + self.weights["tv_weight"] * total_variation(output.float())
        return {"feature": feature, "style": style, "total": total}

    def losses(
        self,
        network: Callable[..., Any],
        microbatch: Microbatch[ImageBatch],
        step: int,
        phase: str,
    ) -> Losses:
        images = microbatch.batch.images
        losses = self.weighted_losses(network(images), images)
        return Losses(
            losses["total"].mean(), {name: losses[name].detach().sum() for name in self.sums}
        )

    def evaluator(
        self, data: DataSets, device: torch.device, batch_size: int, artifacts: Mapping[str, str]
    ) -> LossEvaluator:
        return LossEvaluator(self.weighted_losses, device)

    @torch.no_grad()
    def pictures(self, network: nn.Module, data: DataSets, device: torch.device) -> dict[str, Any]:
        """The first validation images, above what the network makes of them."""
        assert data.val is not None
        shown = [data.val[0, index][0] for index in range(min(_SHOWN, len(data.val)))]
        images = torch.stack(shown).to(device)
        rows = [torch.cat(list(row), dim=2) for row in (images, network(images).float())]
        pixels = torch.cat(rows, dim=1).clamp(0, 255).byte()
        return {"content and output": pixels.permute(1, 2, 0).cpu().numpy()}

    def departures(self, fingerprint: Mapping[str, Any]) -> list[dict[str, str]]:
        """From Sec. 4.3 of the SN paper, which follows Johnson et al. where it says nothing."""
        config = self.config
        facts = (
            ("data", "coco", config.data.name),
            ("image size", 256, config.data.image_size),
            ("iterations", 40_000, config.trainer.max_steps),
            ("epochs", None, config.trainer.epochs),
            ("setting", "1x4", f"{config.batch.gpus}x{config.batch.samples_per_gpu}"),
            ("learning rate", 1e-3, self.weights["learning_rate"]),
            ("content layer", "relu2_2", self.content_layer),
            ("weight of total variation", 0.0, self.weights["tv_weight"]),
            ("features", "unit scale (Fig. 6a)", self._describe_scale()),
            ("precision", "fp32", config.trainer.precision),
        )
        return [
            {"item": item, "paper": str(paper), "ours": str(ours)}
            for item, paper, ours in facts
            if paper != ours
        ]

    def _describe_scale(self) -> str:
        return "unit scale (Fig. 6a)" if self.scale is SCALES["unit"] else "pixel scale"


class LossEvaluator:
    """Mean losses over the validation images, summed in float64.

    Args:
        losses: of (output, images), as :meth:`Stylization.weighted_losses`.
    """

    def __init__(
        self, losses: Callable[[Tensor, Tensor], dict[str, Tensor]], device: torch.device
    ) -> None:
        self._losses = losses
        # The sums of feature, style and total losses, and the number of images.
        self._totals = torch.zeros(4, dtype=torch.float64, device=device)

    def update(self, forward: Callable[..., Tensor], batch: ImageBatch) -> None:
        losses = self._losses(forward(batch.images), batch.images)
        self._totals[:3] += torch.stack([part.double().sum() for part in losses.values()])
        self._totals[3] += len(batch)

    def gather(self) -> None:
        all_reduce_sum(self._totals)

    def finish(self) -> dict[str, Any]:
        """``total_loss``, ``feature_loss``, ``style_loss`` and ``seen``, the number of images."""
        feature, style, total, seen = self._totals.tolist()
        return {
            "total_loss": total / seen,
            "feature_loss": feature / seen,
            "style_loss": style / seen,
            "seen": int(seen),
        }
