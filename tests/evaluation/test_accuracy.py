"""Top-1 and top-5 accuracy: each sample of the validation set counts once, on any rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from process_groups import run_programs
from torch import Tensor, nn

from sn_imagenet.config import DataConfig, ExperimentConfig
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.data.datasets import AugmentedDataset
from sn_imagenet.data.loaders import eval_loader
from sn_imagenet.data.sources import Sample
from sn_imagenet.distributed import init_distributed, rank, world_size
from sn_imagenet.errors import ConfigError
from sn_imagenet.evaluation import evaluate
from sn_imagenet.session import session
from sn_imagenet.tasks import prepare
from sn_imagenet.tasks.classification.accuracy import AccuracyEvaluator, correct_counts
from sn_imagenet.tasks.classification.detail import Detail

CLASSES = 7
Compose = Callable[..., ExperimentConfig]


class RandomImages:
    """``count`` random images with random labels."""

    classes = tuple(map(str, range(CLASSES)))

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(count)
        self.images = torch.randn(count, 3, 4, 4, generator=generator)
        self.labels = torch.randint(CLASSES, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def open(self, index: int) -> Sample:
        image, label = self[index]
        return Sample(image, (4, 4), label)

    def fingerprint(self) -> dict[str, Any]:
        return {}


def network(classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, classes)).eval()


@torch.no_grad()
def compute_accuracy(count: int, batch_size: int, detail: Detail | None = None) -> dict[str, Any]:
    data = DataConfig("numbers", "digits", 4, 4, (0, 0, 0), (1, 1, 1), 0, decode="exact")
    dataset = AugmentedDataset(RandomImages(count), data, None, seed=0)
    loader = eval_loader(
        dataset, batch_size=batch_size, rank=rank(), world_size=world_size(), workers=0
    )
    evaluator = AccuracyEvaluator(torch.device("cpu"), detail)
    for batch in loader:
        evaluator.update(network(), batch)
    evaluator.gather()
    return evaluator.finish()


def expected_accuracy(count: int) -> dict[str, Any]:
    """Count image by image: top-k is correct if fewer than k logits exceed the label's."""
    dataset, net = RandomImages(count), network()
    top1 = top5 = 0
    loss = 0.0
    bins: list[list[float]] = [[] for _ in range(15)]
    for image, label in (dataset[i] for i in range(count)):
        logits = net(image[None])[0].double().tolist()
        larger = sum(value > logits[label] for value in logits)
        top1 += larger < 1
        top5 += larger < 5
        scale = sum(map(math.exp, logits))
        loss += math.log(scale) - logits[label]
        confidence = math.exp(max(logits)) / scale
        bins[min(int(confidence * 15), 14)].append((larger < 1) - confidence)
    return {
        "top1": pytest.approx(100 * top1 / count),
        "top5": pytest.approx(100 * top5 / count),
        "top1_correct": top1,
        "top5_correct": top5,
        "nonfinite": 0,
        "seen": count,
        "loss": pytest.approx(loss / count, rel=1e-5),
        "ece": pytest.approx(100 * sum(abs(sum(gaps)) for gaps in bins) / count, rel=1e-4),
    }


@pytest.mark.parametrize("batch_size", [1, 3, 13, 100])
def test_the_batch_size_does_not_change_the_counts(batch_size: int) -> None:
    record = compute_accuracy(13, batch_size)
    assert record == expected_accuracy(13)
    assert 0 < record["top1_correct"] < record["top5_correct"] < 13


CASES = [(13, 3), (12, 5), (1, 4), (2, 1)]  # uneven, even, twice a rank without samples


def evaluate_as_program(folder: str) -> None:
    with session():
        init_distributed()
        detail = Detail(CLASSES, 13, 3, torch.device("cpu"), keep_logits=True)
        records = [compute_accuracy(*case) for case in CASES[1:]]
        records.insert(0, compute_accuracy(*CASES[0], detail))
        details = detail.by_class, detail.labels, detail.logits
        torch.save((records, details), f"{folder}/{rank()}.pt")


def test_two_processes_count_each_sample_once_in_the_order_of_the_data(tmp_path: Path) -> None:
    for rank_result in run_programs(2, evaluate_as_program, tmp_path, str(tmp_path)):
        assert rank_result.code == 0, rank_result.err
    dataset = RandomImages(13)
    expected = network()(dataset.images).detach()
    correct = expected.argmax(1) == dataset.labels
    for number in (0, 1):
        records, (by_class, labels, logits) = torch.load(tmp_path / f"{number}.pt")
        for (count, _), record in zip(CASES, records, strict=True):
            assert record == expected_accuracy(count)
        assert torch.equal(labels, dataset.labels)
        assert torch.allclose(logits, expected, atol=1e-6)
        assert by_class == [
            (int(correct[labels == k].sum()), int((labels == k).sum())) for k in range(CLASSES)
        ]


def test_top5_of_fewer_than_five_classes() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert correct_counts(logits, torch.tensor([0, 0])).tolist() == [1, 2, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", [0, 3])
def test_nonfinite_logits_are_wrong_and_counted(value: float, column: int) -> None:
    """For the label's class and for another one; topk puts NaN first."""
    logits = torch.zeros(3, 7)
    logits[:, 0] = 1.0
    logits[1, column] = value
    assert correct_counts(logits, torch.tensor([0, 0, 0])).tolist() == [2, 2, 1]
    logits[:] = value
    assert correct_counts(logits, torch.tensor([0, 1, 2])).tolist() == [0, 0, 3]


def test_a_nonfinite_loss_is_null() -> None:
    images, labels = torch.full((2, 3, 4, 4), torch.nan), torch.zeros(2, dtype=torch.long)
    evaluator = AccuracyEvaluator(torch.device("cpu"))
    evaluator.update(network(), ImageBatch(images, labels))
    record = evaluator.finish()
    assert record["loss"] is None and record["ece"] is None
    assert (record["seen"], record["nonfinite"], record["top1_correct"]) == (2, 2, 0)


@pytest.mark.parametrize(
    ("norm", "batch", "expected"),
    [
        ("bn", "8x2", ["moving_average", "batch_average"]),
        ("sync_bn", "8x2", ["moving_average", "batch_average"]),
        ("sn", "8x2", ["moving_average", "batch_average"]),
        ("sn", "8x1", ["sample"]),
        ("gn", "8x2", ["sample"]),
    ],
)
def test_each_method_is_evaluated_with_all_statistics_that_it_has(
    composed: Compose, norm: str, batch: str, expected: list[str]
) -> None:
    config = composed("data=digits", "model=resnet14_mini", f"norm={norm}", f"batch={batch}",
                      "calibration.samples=64")  # fmt: skip
    prepared = prepare(config)
    before = {name: tensor.clone() for name, tensor in prepared.network.state_dict().items()}
    evaluations = evaluate(prepared)
    assert [e.statistics is not None for e in evaluations] == [False, True][: len(expected)]
    records = {e.record["statistics"]: e.record for e in evaluations}
    assert list(records) == expected
    for statistics, record in records.items():
        assert record["seen"] == 400
        assert record["top1"] == 100 * record["top1_correct"] / 400
        assert record["precision"] == "fp32"
        assert record["data"] == {"name": "digits", "val": prepared.data.fingerprint["val"]}
        assert (record["calibration"] is not None) == (statistics == "batch_average")
    if "batch_average" in records:
        calibration = records["batch_average"]["calibration"]
        assert calibration["samples_used"] == 64
        assert calibration["samples_per_replica"] == (16 if norm == "sync_bn" else 2)
        # The untrained network's running statistics are initial values, not its activations'.
        assert records["batch_average"]["loss"] != records["moving_average"]["loss"]
    for name, tensor in prepared.network.state_dict().items():
        assert tensor.equal(before[name]), name


def test_results_do_not_depend_on_the_evaluation_batch(composed: Compose) -> None:
    results = []
    for size in (7, 400):
        prepared = prepare(
            composed("data=digits", "model=resnet14_mini", "norm=sn", "batch=8x2",
                     "calibration.samples=64", f"trainer.eval_batch_size={size}")
        )  # fmt: skip
        prepared.network.double()
        prepared.network.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
        results.append([e.record for e in evaluate(prepared)])
    for small, large in zip(*results, strict=True):
        assert small["loss"] == pytest.approx(large["loss"], rel=1e-9)
        assert small["top1_correct"] == large["top1_correct"]


@pytest.mark.parametrize(("norm", "statistics"), [("gn", "batch_average"), ("bn", "sample")])
def test_a_method_must_have_the_statistics(composed: Compose, norm: str, statistics: str) -> None:
    config = composed("data=digits", "model=resnet14_mini", f"norm={norm}",
                      f"norm.test_statistics={statistics}")  # fmt: skip
    with pytest.raises(ConfigError, match=rf"norm\.test_statistics={statistics}: norm={norm} has"):
        prepare(config)
