"""Efficient neural architecture search (ENAS, Pham et al. 2018) as a task of two phases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.config.checks import require
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.data.datasets import AugmentedDataset, DataSets
from sn_imagenet.data.subset import split_source
from sn_imagenet.distributed import Microbatch
from sn_imagenet.models import initialized
from sn_imagenet.models.cell import CellNetwork
from sn_imagenet.runs.scores import Score
from sn_imagenet.tasks.architecture_search.controller import (
    Controller,
    ControllerOptions,
    SearchNetwork,
    controller_args,
    norm_of,
    to_architectures,
)
from sn_imagenet.tasks.architecture_search.evaluator import (
    EvaluationBatches,
    RepeatedLoader,
    SearchEvaluator,
)
from sn_imagenet.tasks.task import Clock, Losses, Optimization, Task, differences


class ArchitectureSearch(Task):
    """Each epoch trains the weights that all architectures share, one architecture per step, and
    then the controller by REINFORCE: its reward is the accuracy on a batch of other images.

    Args:
        placement, controller: see :mod:`~sn_imagenet.tasks.architecture_search.controller`.
        reward_fraction: of the training images, set aside for rewards.
        candidates: architectures sampled in each validation; the score is their mean accuracy.
        lr_min, restart_epochs: of the cosine schedule of the weights.
    """

    score = Score("val_accuracy", "validation accuracy", "%")
    sums = ("correct", "children", "reward", "entropy")
    phases = ("weights", "controller")
    max_processes = 1
    calibrates = False
    replica_by_replica = True

    def __init__(
        self,
        config: ExperimentConfig,
        placement: str,
        reward_fraction: float,
        candidates: int,
        lr_min: float,
        restart_epochs: int,
        controller: Mapping[str, Any],
    ) -> None:
        super().__init__(config)
        self.placement, self.controller = placement, ControllerOptions(**controller)
        self.reward_fraction, self.candidates = reward_fraction, candidates
        self.lr_min, self.restart_epochs, highest = lr_min, restart_epochs, config.initial_lr
        for key, within, expected in (
            ("reward_fraction", 0 < reward_fraction < 1, "a fraction between 0 and 1"),
            ("candidates", candidates >= 1, "at least 1"),
            ("restart_epochs", restart_epochs >= 1, "at least 1"),
            ("lr_min", 0 <= lr_min <= highest, f"0 to {highest:g}, the highest rate of weights"),
        ):
            require(within, f"task.{key}={getattr(self, key)}: expected {expected}")

    def datasets(self) -> DataSets:
        """``train`` is for the weights. ``val``, a part of each class's training images that is the
        same for every seed, is for rewards. The validation images of the data are for the test."""
        data, augment = super().datasets(), self.config.augment
        weights, rewards = split_source(data.train.source, self.reward_fraction)
        assert data.val is not None, "image data have validation images"
        self._test = data.val
        return DataSets(
            train=AugmentedDataset(weights, data.train.data, augment, data.train.seed),
            val=AugmentedDataset(rewards, data.train.data, None, data.train.seed),
            classes=data.classes,
            fingerprint={
                "train": weights.fingerprint(),
                "val": rewards.fingerprint(),
                "test": data.fingerprint["val"],
            },
        )

    def network(self, data: DataSets) -> SearchNetwork:
        """The controller and the shared weights; the latter do not depend on the method."""
        config, args = self.config, dict(self.config.model.args)
        require(
            config.model.name == "cell" and args.pop("architecture", None) is None,
            f"model={config.model.name}: task=architecture_search searches architectures of "
            "model=cell, without model.args.architecture",
        )

        def build() -> SearchNetwork:
            child = CellNetwork(len(data.classes), **args, dropout=config.protocol.dropout)
            uniform, norm = bool(config.norm.args.get("uniform")), norm_of(config.norm)
            policy = Controller(child.blocks, self.controller, self.placement, norm, uniform)
            return SearchNetwork(policy, child)

        self._network = initialized(build, config.seed)
        return self._network

    def norm_args(self) -> dict[str, Any]:
        return controller_args(self.config.norm)

    def check(self, network: nn.Module, data: DataSets) -> None:
        side, batch = self.config.data.image_size, self.config.batch.total
        require(
            side >= 8,
            f"data.image_size={side}: expected at least 8, since the child halves its maps twice",
        )
        for part, name in ((data.train, "weights"), (data.val, "rewards")):
            size = len(part or ())
            require(
                size >= batch,
                f"task.reward_fraction={self.reward_fraction} gives {size} images for {name}, and "
                f"a batch has {batch}; use another fraction, more data or a smaller batch",
            )

    def batches(self, phase: str, data: DataSets, device: torch.device) -> Any:
        if phase == "weights":
            return super().batches(phase, data, device)
        assert data.val is not None
        rewards = super().batches("weights", replace(data, train=data.val), device)
        return RepeatedLoader(rewards, self.controller.steps)

    def optimizations(self, network: nn.Module, clock: Clock) -> dict[str, Optimization]:
        """SGD with Nesterov momentum and cosine restarts for the weights, Adam for the controller.
        What an architecture does not use stays as it is in that step."""
        assert isinstance(network, SearchNetwork)
        self._steps_per_epoch = clock.steps_per_epoch
        protocol, controller = self.config.protocol, self.controller
        weights = torch.optim.SGD(
            network.child.parameters(),
            lr=self.config.initial_lr,
            momentum=protocol.momentum,
            weight_decay=protocol.weight_decay,
            nesterov=True,
            fused=True,
        )
        policy, betas = network.policy.parameters(), (controller.beta1, 0.999)
        adam = torch.optim.Adam(policy, betas=betas, eps=controller.eps, fused=True)
        return {
            "weights": Optimization(weights, self._rate),
            "controller": Optimization(adam, lambda step: controller.learning_rate),
        }

    def _rate(self, step: int) -> float:
        """Cosine from the highest rate to ``lr_min`` by epoch, over periods that double."""
        epoch, period = step // self._steps_per_epoch, self.restart_epochs
        while epoch >= period:
            epoch, period = epoch - period, 2 * period
        amplitude = (self.config.initial_lr - self.lr_min) / 2
        return self.lr_min + amplitude * (1 + math.cos(math.pi * epoch / period))

    def losses(
        self, network: Callable[..., Any], microbatch: Microbatch[ImageBatch], step: int, phase: str
    ) -> Losses:
        images, labels = microbatch.batch
        sums: dict[str, Tensor] = {name: torch.zeros(()) for name in self.sums}
        if phase == "weights":
            with torch.no_grad():
                (architecture,) = to_architectures(network("policy", 1).decisions)
            logits = network("child", images, architecture)
            sums["correct"] = (logits.detach().argmax(1) == labels).sum()
            return Losses(F.cross_entropy(logits, labels), sums)
        sampled = network("policy", self.controller.samples)
        with torch.no_grad():
            accuracies = [
                (network("child", images, architecture).argmax(1) == labels).float().mean()
                for architecture in to_architectures(sampled.decisions)
            ]
        entropy = sampled.entropy.detach()
        rewards = torch.stack(accuracies) + self.controller.entropy_weight * entropy
        advantages = self._network.advantages(rewards, self.controller.baseline_decay)
        sums["children"] += len(rewards)
        sums |= {"reward": rewards.sum(), "entropy": entropy.sum()}
        return Losses(-(sampled.log_prob * advantages).mean(), sums)

    def metrics(self, sums: Mapping[str, float], samples: int) -> dict[str, float]:
        """Of the steps' phase: the accuracy of sampled architectures on augmented images, or the
        mean reward and entropy."""
        if not sums["children"]:
            return {"train_accuracy": 100 * sums["correct"] / samples}
        return {name: sums[name] / sums["children"] for name in ("reward", "entropy")}

    def evaluation_batches(self, data: DataSets, batch_size: int, device: torch.device) -> Any:
        """Batches of as many samples as share statistics in training: ``trainer.eval_batch_size``
        does not apply, because the child normalizes with the statistics of the batch."""
        assert data.val is not None
        size, workers = self.config.batch.samples_per_gpu, self.config.data.workers
        return EvaluationBatches([data.val, self._test], size, workers, device)

    def evaluator(
        self, data: DataSets, device: torch.device, batch_size: int, artifacts: Mapping[str, str]
    ) -> SearchEvaluator:
        return SearchEvaluator(self.candidates)

    def departures(self, fingerprint: Mapping[str, Any]) -> list[dict[str, str]]:
        """From what Sec. 4.4 states or Fig. 6(b) shows (restarts after 10, 30 and 70 epochs)."""
        config, args = self.config, self.config.model.args
        return differences(
            [
                ("data", "cifar10", config.data.name),
                ("batch", "1x160", config.batch.name),
                ("epochs", 150, config.trainer.epochs),
                ("cells", 6, args.get("cells")),
                ("filters", 20, args.get("filters")),
                ("places of the normalization layers", "not stated", self.placement),
                ("groups of GN in the LSTM", "not stated", "one per gate"),
                ("auxiliary classifier of the child", "not stated; in ENAS's code", "none"),
                ("images for the rewards of a step", "not stated; a batch each", "one batch"),
                ("controller", "not stated", asdict(self.controller)),
            ]
        )
