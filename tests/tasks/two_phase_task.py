"""A task with two phases an epoch, two optimizers, no validation set, and a median as its score."""

import dataclasses
import json
import statistics

import torch
import torch.distributed as dist
from torch import nn

from sn_imagenet.data.loaders import eval_loader
from sn_imagenet.distributed import rank, world_size
from sn_imagenet.models import build_model
from sn_imagenet.runs.scores import Score
from sn_imagenet.tasks import Losses, Optimization, Task


class Calibrated(nn.Module):
    """A network with one output, and a learned scale and offset of it."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.scale = nn.Parameter(torch.ones(1))
        self.offset = nn.Parameter(torch.zeros(1))

    def forward(self, images, phase="body"):
        output = self.body(images)[:, 0]
        if phase == "body":
            return output
        return output.detach() * self.scale + self.offset


class TwoPhase(Task):
    """Phase ``body`` trains the network by SGD, phase ``scale`` the scale and offset by Adam."""

    score = Score("median_error", "median error", higher_is_better=False)
    phases = ("body", "scale")
    artifacts = ("errors",)
    replica_by_replica = True

    def datasets(self):
        data = super().datasets()
        fingerprint = {"train": data.fingerprint["train"]}
        return dataclasses.replace(data, val=None, fingerprint=fingerprint)

    def network(self, data):
        config = self.config
        return Calibrated(build_model(config.model, config.norm, config.protocol, 1, config.seed))

    def optimizations(self, network, clock):
        body = torch.optim.SGD(network.body.parameters(), lr=0.01, momentum=0.9, fused=True)
        scale = torch.optim.Adam([network.scale, network.offset], lr=0.01, fused=True)
        return {
            "body": Optimization(body, lambda step: 0.01),
            "scale": Optimization(scale, lambda step: 0.001 * (1 + step / clock.total_steps)),
        }

    def losses(self, network, microbatch, step, phase):
        images, labels = microbatch.batch
        noise = 0.1 * torch.randn(labels.shape)  # from the global generator
        return Losses((network(images, phase) - labels - noise).square().mean())

    def after_step(self, network, step):
        with torch.no_grad():
            network.scale.clamp_(min=0.5)

    def evaluation_batches(self, data, batch_size, device):
        return eval_loader(
            data.train,
            batch_size=batch_size,
            rank=rank(),
            world_size=world_size(),
            workers=self.config.data.workers,
            device=device,
        )

    def evaluator(self, data, device, batch_size, artifacts):
        return MedianError()

    def write_artifacts(self, data, evaluators, artifacts):
        errors = {name: evaluator.errors for name, evaluator in evaluators.items()}
        return {artifacts["errors"]: json.dumps(errors).encode()} if artifacts else {}


class MedianError:
    def __init__(self):
        self.errors = []

    def update(self, forward, batch):
        errors = forward(batch.images, "scale") - batch.labels
        self.errors += errors.abs().tolist()

    def gather(self):
        if dist.is_initialized():
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, self.errors)
            self.errors = [error for errors in gathered for error in errors]

    def finish(self):
        return {"median_error": statistics.median(self.errors), "seen": len(self.errors)}
