"""Regression on digits: the digit as a number, with Adam and a number of steps. docs/tasks.md
shows this file as the way to add a task."""

import torch

from sn_imagenet.distributed import all_reduce_sum
from sn_imagenet.models import build_model
from sn_imagenet.runs.scores import Score
from sn_imagenet.tasks import Losses, Optimization, Task


class Regression(Task):
    score = Score("mae", "MAE", higher_is_better=False)
    sums = ("absolute_error",)

    def __init__(self, config, learning_rate=0.01):
        super().__init__(config)
        self.learning_rate = learning_rate

    def network(self, data):
        config = self.config
        return build_model(config.model, config.norm, config.protocol, 1, config.seed)

    def optimizations(self, network, clock):
        adam = torch.optim.Adam(network.parameters(), fused=True)
        return {
            "adam": Optimization(adam, lambda step: self.learning_rate * min(1, step / 10), 5.0)
        }

    def losses(self, network, microbatch, step, phase):
        errors = network(microbatch.batch.images)[:, 0] - microbatch.batch.labels
        return Losses(errors.square().mean(), {"absolute_error": errors.detach().abs().sum()})

    def evaluator(self, data, device, batch_size, artifacts):
        return MeanAbsoluteError(device)


class MeanAbsoluteError:
    def __init__(self, device):
        self.totals = torch.zeros(2, dtype=torch.float64, device=device)  # errors, samples

    def update(self, forward, batch):
        self.totals[0] += (forward(batch.images)[:, 0] - batch.labels).abs().sum()
        self.totals[1] += len(batch)

    def gather(self):
        all_reduce_sum(self.totals)

    def finish(self):
        total, samples = self.totals.tolist()
        return {"mae": total / samples, "seen": int(samples)}
