"""Efficient neural architecture search (ENAS, Pham et al. 2018) as a task of two phases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.config.checks import require
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.data.datasets import DataSets
from sn_imagenet.data.loaders import TrainLoader, train_loader
from sn_imagenet.distributed import Microbatch
from sn_imagenet.models import initialized
from sn_imagenet.models.cell import CellNetwork
from sn_imagenet.runs.scores import Score
from sn_imagenet.tasks.architecture_search.controller import (
    ControllerOptions,
    controller_args,
    make_policy,
)
from sn_imagenet.tasks.architecture_search.data import (
    EvaluationBatches,
    RepeatedLoader,
    SearchData,
    search_data,
)
from sn_imagenet.tasks.architecture_search.evaluator import SearchEvaluator
from sn_imagenet.tasks.architecture_search.network import SearchNetwork
from sn_imagenet.tasks.task import Clock, Losses, Optimization, Task

LEAST_PIXELS = 8
# What the paper (Sec. 4.4) states, or Fig. 6(b) shows: 150 epochs with restarts after 10, 30, 70.
PAPER = {"data": "cifar10", "batch": "1x160", "epochs": 150, "cells": 6, "filters": 20}


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
    sums = ("trained", "correct", "children", "reward", "entropy")
    phases = ("weights", "controller")
    max_processes = 1
    calibrates = False
    uses_global_rng = True

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
        self.placement = placement
        self.reward_fraction = reward_fraction
        self.candidates = candidates
        self.lr_min = lr_min
        self.restart_epochs = restart_epochs
        self.controller = ControllerOptions(**controller)
        require(
            0 < reward_fraction < 1,
            f"task.reward_fraction={reward_fraction}: expected a fraction between 0 and 1",
        )
        for key in ("candidates", "restart_epochs"):
            value = getattr(self, key)
            require(value >= 1, f"task.{key}={value}: expected at least 1")
        highest = config.initial_lr
        require(
            0 <= lr_min <= highest,
            f"task.lr_min={lr_min}: expected 0 to {highest:g}, the highest rate of the weights "
            "(protocol.base_lr * total batch / protocol.lr_reference_batch)",
        )

    def datasets(self) -> SearchData:
        return search_data(super().datasets(), self.reward_fraction)

    def network(self, data: DataSets) -> SearchNetwork:
        """The shared weights and the controller; the former do not depend on the method."""
        config, args = self.config, dict(self.config.model.args)
        require(
            config.model.name == "cell" and args.pop("architecture", None) is None,
            f"model={config.model.name}: task=architecture_search searches architectures of "
            "model=cell, without model.args.architecture",
        )

        def build() -> SearchNetwork:
            child = CellNetwork(len(data.classes), **args, dropout=config.protocol.dropout)
            policy = make_policy(config.norm, self.placement, child.blocks, self.controller)
            return SearchNetwork(policy, child)

        network = initialized(build, config.seed)
        assert isinstance(network, SearchNetwork)
        return network

    def norm_args(self) -> dict[str, Any]:
        return controller_args(self.config.norm)

    def check(self, network: nn.Module, data: DataSets) -> None:
        config = self.config
        require(
            config.trainer.epochs is not None,
            "trainer.epochs=null: task=architecture_search trains by epochs",
        )
        side = config.data.image_size
        require(
            side >= LEAST_PIXELS,
            f"data.image_size={side}: expected at least {LEAST_PIXELS}, since the child halves its "
            "maps twice",
        )
        reward, batch = len(data.val or ()), config.batch.total
        require(
            reward >= batch,
            f"task.reward_fraction={self.reward_fraction} sets {reward} images aside for rewards, "
            f"and a batch has {batch}; use a larger fraction, more data or a smaller batch",
        )

    def batches(self, phase: str, data: DataSets, device: torch.device) -> Any:
        if phase == "weights":
            return super().batches(phase, data, device)
        assert data.val is not None
        config = self.config
        loader: TrainLoader = train_loader(
            data.val,
            global_batch=config.batch.total,
            rank=0,
            world_size=1,
            seed=config.seed,
            workers=config.data.workers,
            device=device,
        )
        return RepeatedLoader(loader, self.controller.steps)

    def optimizations(self, network: nn.Module, clock: Clock) -> dict[str, Optimization]:
        """SGD with Nesterov momentum and cosine restarts for the weights, Adam for the controller.
        What an architecture does not use stays as it is in that step."""
        assert isinstance(network, SearchNetwork)
        self._network, self._clock = network, clock
        protocol, controller = self.config.protocol, self.controller
        weights = torch.optim.SGD(
            network.child.parameters(),
            lr=self.config.initial_lr,
            momentum=protocol.momentum,
            weight_decay=protocol.weight_decay,
            nesterov=True,
            fused=True,
        )
        adam = torch.optim.Adam(
            [{"params": list(network.policy.parameters())}],  # none for random search
            lr=controller.learning_rate,
            betas=(controller.beta1, 0.999),
            eps=controller.eps,
            fused=True,
        )
        return {
            "weights": Optimization(weights, lambda step: self._rate(step)),
            "controller": Optimization(adam, lambda step: controller.learning_rate),
        }

    def _rate(self, step: int) -> float:
        """Cosine from the highest rate to ``lr_min`` by epoch, over periods that double."""
        epoch, period = step // self._clock.steps_per_epoch, self.restart_epochs
        while epoch >= period:
            epoch, period = epoch - period, 2 * period
        amplitude = (self.config.initial_lr - self.lr_min) / 2
        return self.lr_min + amplitude * (1 + math.cos(math.pi * epoch / period))

    def losses(
        self,
        network: Callable[..., Any],
        microbatch: Microbatch[ImageBatch],
        step: int,
        phase: str,
    ) -> Losses:
        images, labels = microbatch.batch
        if phase == "weights":
            with torch.no_grad():
                (decisions,) = network("policy", 1).decisions.tolist()
            logits = network("child", images, decisions)
            correct = (logits.detach().argmax(1) == labels).sum()
            sums = {"trained": torch.tensor(len(labels)), "correct": correct}
            return Losses(F.cross_entropy(logits, labels), self._all_sums(sums))
        sampled = network("policy", self.controller.samples)
        with torch.no_grad():
            accuracies = [
                (network("child", images, decisions).argmax(1) == labels).float().mean()
                for decisions in sampled.decisions.tolist()
            ]
        entropy = sampled.entropy.detach()
        rewards = torch.stack(accuracies) + self.controller.entropy_weight * entropy
        epoch = step // self._clock.steps_per_epoch
        self._network.remember_best(sampled.decisions, rewards, epoch)
        advantages = self._network.advantages(rewards, self.controller.baseline_decay)
        loss = -(sampled.log_prob * advantages).mean()
        if not loss.requires_grad:  # random search
            loss.requires_grad_()
        count = torch.tensor(len(rewards))
        sums = {"children": count, "reward": rewards.sum(), "entropy": entropy.sum()}
        return Losses(loss, self._all_sums(sums))

    def _all_sums(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: sums.get(name, torch.zeros(())) for name in self.sums}

    def metrics(self, sums: Mapping[str, float], samples: int) -> dict[str, float]:
        """Of the phases that the steps belong to: the accuracy of the sampled architectures on
        augmented images, and the mean reward and entropy."""
        metrics = {}
        if sums["trained"]:
            metrics["train_accuracy"] = 100 * sums["correct"] / sums["trained"]
        if sums["children"]:
            metrics |= {name: sums[name] / sums["children"] for name in ("reward", "entropy")}
        return metrics

    def evaluation_batches(
        self, data: DataSets, batch_size: int, device: torch.device
    ) -> EvaluationBatches:
        """Batches of as many samples as share statistics in training: ``trainer.eval_batch_size``
        does not apply, because the child normalizes with the statistics of the batch."""
        assert isinstance(data, SearchData)
        size, workers = self.config.batch.samples_per_gpu, self.config.data.workers
        return EvaluationBatches(data, size, workers, device)

    def evaluator(
        self, data: DataSets, device: torch.device, batch_size: int, artifacts: Mapping[str, str]
    ) -> SearchEvaluator:
        return SearchEvaluator(self.candidates, device)

    def departures(self, fingerprint: Mapping[str, Any]) -> list[dict[str, str]]:
        config = self.config
        args = config.model.args
        ours = {
            "data": config.data.name,
            "batch": config.batch.name,
            "epochs": config.trainer.epochs,
            "cells": args.get("cells"),
            "filters": args.get("filters"),
        }
        differing = [(key, PAPER[key], ours[key]) for key in PAPER if PAPER[key] != ours[key]]
        differing += [
            ("places of the normalization layers", "not stated", self.placement),
            ("groups of GN in the LSTM", "not stated", "one per gate"),
            ("auxiliary classifier of the child", "not stated; in ENAS's code", "none"),
            ("images for the rewards of a step", "not stated; one batch each", "one batch"),
            ("controller", "not stated", str(asdict(self.controller))),
        ]
        return [
            {"item": item, "paper": str(paper), "ours": str(own)} for item, paper, own in differing
        ]
