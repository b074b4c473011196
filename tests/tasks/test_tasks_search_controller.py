"""The controller of architecture search: probabilities, gradients, REINFORCE, against formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.distributed import Microbatch
from sn_imagenet.tasks import Clock, build_task
from sn_imagenet.tasks.architecture_search import ArchitectureSearch
from sn_imagenet.tasks.architecture_search import controller as module
from sn_imagenet.tasks.architecture_search.controller import Controller, controller_args, norm_of

Compose = Callable[..., ExperimentConfig]
TASK = ("task=architecture_search", "data=digits", "batch=1x16")
METHODS = ("ln", "gn", "sn", "none")
CASES = [(norm, "lstm") for norm in METHODS] + [("sn", "gates"), ("none", "gates")]


@pytest.fixture
def controller(composed: Compose) -> Callable[..., Controller]:
    """A controller in float64 whose parameters, all random, make its choices far from uniform."""

    def make(norm: str, placement: str = "lstm", blocks: int = 1) -> Controller:
        config = composed(*TASK, f"norm={norm}")
        task = build_task(config)
        assert isinstance(task, ArchitectureSearch)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            uniform, norms = norm == "random", norm_of(config.norm)
            policy = Controller(blocks, task.controller, placement, norms, uniform).double()
            for parameter in policy.parameters():
                nn.init.normal_(parameter, std=0.5)
        return policy

    return make


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """All architectures of one block with two operations: two cells of four decisions."""
    monkeypatch.setattr(module, "OPERATIONS", ("sep3x3", "identity"))
    monkeypatch.setattr(module, "KERNELS", {"sep3x3": 3})
    return torch.tensor(list(itertools.product((0, 1), repeat=8)))


@pytest.mark.parametrize(("norm", "placement"), CASES)
def test_the_probabilities_of_all_architectures_sum_to_one(
    controller: Callable[..., Controller], space: Tensor, norm: str, placement: str
) -> None:
    policy = controller(norm, placement)
    with torch.no_grad():
        log_prob = policy(0, space).log_prob
        sampled = policy(300)
        again = policy(0, sampled.decisions)
    assert log_prob.exp().sum().item() == pytest.approx(1, rel=1e-12)
    assert log_prob.std() > 0.1  # not uniform
    index = {tuple(row): i for i, row in enumerate(space.tolist())}
    rows = [index[tuple(row)] for row in sampled.decisions.tolist()]
    torch.testing.assert_close(sampled.log_prob, log_prob[rows])
    torch.testing.assert_close(again.entropy, sampled.entropy)


def test_choices_are_drawn_with_their_probabilities(
    controller: Callable[..., Controller], space: Tensor
) -> None:
    policy, draws = controller("sn"), 4000
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        probability = policy(0, space).log_prob.exp()
        sampled = policy(draws)
    for decision in range(space.shape[1]):
        expected = probability[space[:, decision] == 1].sum()
        share = sampled.decisions[:, decision].double().mean()
        deviation = (expected * (1 - expected) / draws).sqrt()
        assert abs(share - expected) < 5 * deviation
    # E[-log p] is the entropy of the whole distribution.
    surprise = -sampled.log_prob
    entropy = -(probability * probability.log()).sum()
    assert surprise.mean() == pytest.approx(
        entropy.item(), abs=5 * surprise.std().item() / draws**0.5
    )
    assert sampled.entropy.mean() == pytest.approx(entropy.item(), rel=0.02)


class Reference:
    """The log-probability of one architecture, in NumPy, from the equations."""

    def __init__(self, policy: Controller, norm: str) -> None:
        self.p = {k: v.detach().numpy() for k, v in policy.named_parameters()}
        self.options, self.norm = policy.options, norm

    def normalized(self, x: np.ndarray, layer: str) -> np.ndarray:
        def stat(groups: int) -> tuple[np.ndarray, np.ndarray]:
            parts = x.reshape(groups, -1)
            each = len(x) // groups
            return parts.mean(1).repeat(each), parts.var(1).repeat(each)

        p = {k.split(".")[-1]: v for k, v in self.p.items() if k.startswith(layer + ".")}
        if self.norm == "none":
            return x
        if self.norm == "sn" and layer != "norm_cell":
            w, v = (np.exp(p[k]) / np.exp(p[k]).sum() for k in ("mean_weight", "var_weight"))
            (ln_mean, ln_var), (gn_mean, gn_var) = stat(1), stat(4)
            mean, var = w[0] * ln_mean + w[1] * gn_mean, v[0] * ln_var + v[1] * gn_var
        else:
            mean, var = stat(4 if self.norm == "gn" and layer != "norm_cell" else 1)
        return (x - mean) / np.sqrt(var + 1e-5) * p["weight"] + p["bias"]

    def step(self, x: np.ndarray) -> None:
        p = self.p
        gates = self.normalized(p["input_weight"].T @ x, "norm_input")
        gates = gates + self.normalized(p["hidden_weight"].T @ self.h, "norm_hidden")
        i, f, o, g = np.split(gates, 4)
        self.c = sigmoid(f) * self.c + sigmoid(i) * np.tanh(g)
        self.h = sigmoid(o) * np.tanh(self.normalized(self.c, "norm_cell"))

    def log_prob(self, decisions: list[int]) -> float:
        p, o, total = self.p, self.options, 0.0
        self.h = self.c = np.zeros(64)
        half = len(decisions) // 2
        for cell in (0, 1):
            fixed = np.array([o.fixed_op_bias] * 2 + [-o.fixed_op_bias] * 3) * (cell == 0)
            states, keys = [], []
            for _ in range(2):
                self.step(p["start"])
                states.append(np.zeros(64))
                keys.append(p["key_weight"].T @ self.h)
            for block in range(half // 4):
                first = cell * half + 4 * block
                x = p["start"]
                for place in (0, 2):
                    self.step(x)
                    query = p["query_weight"].T @ self.h
                    scores = np.array([p["score_weight"] @ np.tanh(k + query) for k in keys])
                    logits = o.tanh * np.tanh(scores / o.temperature)
                    total += log_softmax(logits)[decisions[first + place]]
                    x = states[decisions[first + place]]
                for place in (1, 3):
                    self.step(x)
                    scores = (p["op_weight"].T @ self.h + p["op_bias"]) / o.temperature
                    total += log_softmax(o.op_tanh * np.tanh(scores) + fixed)[
                        decisions[first + place]
                    ]
                    x = p["op_inputs"][decisions[first + place]]
                self.step(x)
                states.append(self.h)
                keys.append(p["key_weight"].T @ self.h)
        return total


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum())


@pytest.mark.parametrize("norm", METHODS)
def test_log_probabilities_follow_the_equations(
    controller: Callable[..., Controller], norm: str
) -> None:
    policy = controller(norm, blocks=5)
    with torch.no_grad():
        sampled = policy(5)
    assert sampled.decisions.shape == (5, 40)
    expected = [Reference(policy, norm).log_prob(row) for row in sampled.decisions.tolist()]
    assert sampled.log_prob.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("norm", "placement"), CASES)
def test_gradients_agree_with_finite_differences(
    controller: Callable[..., Controller], norm: str, placement: str
) -> None:
    policy = controller(norm, placement, blocks=2)
    decisions = controller("random", blocks=2)(4).decisions
    weights = torch.tensor([0.3, -0.7, 0.2, 0.5], dtype=torch.float64)
    (policy(0, decisions).log_prob @ weights).backward()
    parameters = list(policy.parameters())
    assert all(p.grad is not None and p.grad.any() for p in parameters)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        directions = [torch.randn(p.shape, generator=generator).to(p) for p in parameters]
        slope = sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True))
        values = []
        for shift in (1e-6, -2e-6):
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(d, alpha=shift)
                values.append(policy(0, decisions).log_prob @ weights)
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=1e-6)
        assert (values[0] - values[1]).item() / 2e-6 == pytest.approx(float(slope), rel=1e-5)


def test_random_search_is_uniform_and_learns_nothing(controller: Callable[..., Controller]) -> None:
    policy, draws = controller("random", blocks=5), 2000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sampled = policy(draws)
    sizes = [size for b in range(5) for size in (b + 2, 5, b + 2, 5)] * 2
    expected = [-sum(map(math.log, sizes))] * draws
    assert sampled.log_prob.tolist() == pytest.approx(expected)
    for column, size in zip(sampled.decisions.T, sizes, strict=True):
        share = torch.bincount(column, minlength=size) / draws
        assert len(share) == size
        assert (share - 1 / size).abs().max() < 5 * (1 / size / draws) ** 0.5
    sampled.log_prob.sum().backward()
    assert not any(p.grad.any() for p in policy.parameters() if p.grad is not None)


def test_methods_get_the_arguments_of_an_lstm(composed: Compose) -> None:
    arguments = {norm: controller_args(composed(*TASK, f"norm={norm}").norm) for norm in METHODS}
    assert arguments == {
        "ln": {},
        "gn": {"num_groups": 4},
        "sn": {"omega": ["ln", "gn"], "num_groups": 4},
        "none": {},
    }
    config = composed(*TASK, "norm=sn", "norm.args.omega=[ln]")
    assert controller_args(config.norm)["omega"] == ["ln"]
    paper = composed("task=architecture_search_paper", "norm=sn")
    assert (paper.batch.name, paper.trainer.epochs, paper.task["name"]) == (
        *("1x160", 150, "architecture_search"),
    )
    assert paper.task["controller"]["temperature"] == 5 and paper.protocol.momentum == 0.9


class Known(nn.Module):
    """A child that is right on as many images as its cells have separable convolutions."""

    def forward(self, images: Tensor, architecture: Any) -> Tensor:
        right = torch.arange(len(images)) < str(architecture).count("sep")
        return torch.stack([right, ~right], 1).float()


def test_the_loss_is_that_of_reinforce(composed: Compose) -> None:
    options = {"baseline_decay": 0.9, "samples": 4, "entropy_weight": 0.01}
    config = composed(*TASK, "norm=ln", *(f"task.controller.{k}={v}" for k, v in options.items()))
    task = build_task(config)
    assert isinstance(task, ArchitectureSearch)
    config.model.args.update(cells=1, filters=2, blocks=1)
    network = task.network(type("Data", (), {"classes": range(2)})).double()  # type: ignore[arg-type]
    policy = network.policy
    network.baseline.fill_(0.3)
    task.optimizations(network, Clock(10, 100))
    network.child = Known()  # type: ignore[assignment]
    batch: Any = (torch.zeros(16, 1), torch.zeros(16, dtype=torch.int64))
    microbatch = Microbatch(batch, torch.arange(16), 1, 0, True, True)
    torch.manual_seed(3)
    losses = task.losses(network, microbatch, 25, "controller")
    torch.manual_seed(3)
    sampled = policy(4)
    baseline, expected, rewards = 0.3, 0.0, []
    for row, log_prob, entropy in zip(*(part.tolist() for part in sampled), strict=True):
        rewards.append(sum(op < 2 for op in row[1::2]) / 16 + 0.01 * entropy)
        baseline = 0.9 * baseline + 0.1 * rewards[-1]
        expected -= log_prob * (rewards[-1] - baseline) / 4
    assert losses.loss.item() == pytest.approx(expected, rel=1e-7)
    assert network.baseline.item() == pytest.approx(baseline, rel=1e-7)
    assert losses.sums["reward"].item() == pytest.approx(sum(rewards), rel=1e-7)


def test_the_rate_of_the_weights_restarts_after_10_30_and_70_epochs(composed: Compose) -> None:
    config = composed("task=architecture_search", "data=cifar10", "norm=ln")
    task = build_task(config)
    network = task.network(type("Data", (), {"classes": range(10)}))  # type: ignore[arg-type]
    rate = task.optimizations(network, Clock(7, 1050))["weights"].learning_rate
    of_epoch = [rate(7 * epoch) for epoch in range(150)]
    assert [epoch for epoch, value in enumerate(of_epoch) if value == 0.05] == [0, 10, 30, 70]
    assert of_epoch[20] == pytest.approx((0.05 + 0.0005) / 2)
    assert of_epoch[149] == pytest.approx(0.0005, rel=0.05)
    assert rate(6) == of_epoch[0] and min(of_epoch) >= 0.0005
