"""Top-1 and top-5: each sample of the validation set counted once, wherever it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from process_groups import run_programs
from torch import Tensor, nn

from sn_imagenet.config import DataConfig, ExperimentConfig
from sn_imagenet.data.datasets import AugmentedDataset
from sn_imagenet.data.loaders import eval_loader
from sn_imagenet.data.sources import Sample
from sn_imagenet.data.transforms import validation_crop
from sn_imagenet.distributed import init_distributed, rank, session, world_size
from sn_imagenet.errors import ConfigError
from sn_imagenet.evaluation import accuracy, correct_counts, evaluate, prepare
from sn_imagenet.evaluation.detail import Detail

CLASSES = 7
Compose = Callable[..., ExperimentConfig]


class Numbers:
    """``count`` images of random numbers with random labels."""

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
        return Sample((4, 4), label, lambda rows=None: image)

    def fingerprint(self) -> dict[str, Any]:
        return {}


def network(classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, classes)).eval()


def evaluated(
    count: int, batch_size: int, observe: Callable[[Tensor, Tensor], None] = lambda *_: None
) -> dict[str, Any]:
    as_it_is = DataConfig("numbers", "digits", 4, 4, (0, 0, 0), (1, 1, 1), 0, decode="exact")
    dataset = AugmentedDataset(Numbers(count), as_it_is, validation_crop(as_it_is), seed=0)
    loader = eval_loader(
        dataset, batch_size=batch_size, rank=rank(), world_size=world_size(), workers=0
    )
    return accuracy(network(), loader, torch.device("cpu"), nullcontext, observe)


def one_by_one(count: int) -> dict[str, Any]:
    """Counted by hand: a label is right where fewer than k logits are larger."""
    numbers, net = Numbers(count), network()
    top1 = top5 = 0
    loss = 0.0
    bins: list[list[float]] = [[] for _ in range(15)]
    for image, label in (numbers[i] for i in range(count)):
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
def test_counts_are_those_of_one_image_at_a_time(batch_size: int) -> None:
    found = evaluated(13, batch_size)
    assert found == one_by_one(13)
    assert 0 < found["top1_correct"] < found["top5_correct"] < 13


CASES = [(13, 3), (12, 5), (1, 4), (2, 1)]  # not divisible, divisible, a rank without samples


def evaluate_as_program(folder: str) -> None:
    with session():
        init_distributed()
        torch.save([evaluated(*case) for case in CASES], f"{folder}/{rank()}.pt")


def test_two_processes_count_each_sample_once(tmp_path: Path) -> None:
    for ended in run_programs(2, evaluate_as_program, tmp_path, str(tmp_path)):
        assert ended.code == 0, ended.err
    for number in (0, 1):
        for (count, _), found in zip(CASES, torch.load(tmp_path / f"{number}.pt"), strict=True):
            assert found == one_by_one(count)


def detail_as_program(folder: str) -> None:
    with session():
        init_distributed()
        detail = Detail(CLASSES, 13, 3, torch.device("cpu"), keep_logits=True)
        evaluated(13, 3, detail.observe)
        detail.gather()
        torch.save((detail.by_class, detail.labels, detail.logits), f"{folder}/{rank()}.pt")


def test_two_processes_keep_what_one_saw_in_the_order_of_the_data(tmp_path: Path) -> None:
    for ended in run_programs(2, detail_as_program, tmp_path, str(tmp_path)):
        assert ended.code == 0, ended.err
    numbers = Numbers(13)
    expected = network()(numbers.images).detach()
    correct = expected.argmax(1) == numbers.labels
    for number in (0, 1):
        by_class, labels, logits = torch.load(tmp_path / f"{number}.pt")
        assert torch.equal(labels, numbers.labels)
        assert torch.allclose(logits, expected, atol=1e-6)
        assert by_class == [
            (int(correct[labels == k].sum()), int((labels == k).sum())) for k in range(CLASSES)
        ]


def test_fewer_than_five_classes() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert correct_counts(logits, torch.tensor([0, 0])).tolist() == [1, 2, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 3])
def test_logits_that_are_not_finite_are_wrong_and_counted(value: float, place: int) -> None:
    """Of the label's class or of another one; topk puts NaN first."""
    logits = torch.zeros(3, 7)
    logits[:, 0] = 1.0
    logits[1, place] = value
    assert correct_counts(logits, torch.tensor([0, 0, 0])).tolist() == [2, 2, 1]
    logits[:] = value
    assert correct_counts(logits, torch.tensor([0, 1, 2])).tolist() == [0, 0, 3]


def test_a_loss_that_is_not_finite_is_null() -> None:
    images, labels = torch.full((2, 3, 4, 4), torch.nan), torch.zeros(2, dtype=torch.long)
    found = accuracy(network(), [(images, labels)], torch.device("cpu"), nullcontext)
    assert found["loss"] is None and found["ece"] is None
    assert (found["seen"], found["nonfinite"], found["top1_correct"]) == (2, 2, 0)


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
def test_evaluations_by_the_statistics_they_use(
    composed: Compose, norm: str, batch: str, expected: list[str]
) -> None:
    config = composed("data=digits", "model=resnet14_mini", f"norm={norm}", f"batch={batch}",
                      "calibration.samples=64")  # fmt: skip
    prepared = prepare(config)
    before = {name: tensor.clone() for name, tensor in prepared.network.state_dict().items()}
    found = evaluate(prepared)
    assert [made.statistics is not None for made in found] == [False, True][: len(expected)]
    evaluations = {made.record["statistics"]: made.record for made in found}
    assert list(evaluations) == expected
    for statistics, found in evaluations.items():
        assert found["seen"] == 400
        assert found["top1"] == 100 * found["top1_correct"] / 400
        assert found["precision"] == "fp32"
        assert found["data"] == {"name": "digits", "val": prepared.data.fingerprint["val"]}
        assert (found["calibration"] is not None) == (statistics == "batch_average")
    if "batch_average" in evaluations:
        calibration = evaluations["batch_average"]["calibration"]
        assert calibration["samples_used"] == 64
        assert calibration["samples_per_replica"] == (16 if norm == "sync_bn" else 2)
        # The untrained network's running statistics are no statistics of its activations.
        assert evaluations["batch_average"]["loss"] != evaluations["moving_average"]["loss"]
    for name, tensor in prepared.network.state_dict().items():
        assert tensor.equal(before[name]), name


def test_results_do_not_depend_on_the_evaluation_batch(composed: Compose) -> None:
    found = []
    for size in (7, 400):
        prepared = prepare(
            composed("data=digits", "model=resnet14_mini", "norm=sn", "batch=8x2",
                     "calibration.samples=64", f"trainer.eval_batch_size={size}")
        )  # fmt: skip
        prepared.network.double()
        prepared.network.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
        found.append(evaluate(prepared))
    for small, large in zip(*([e.record for e in of_size] for of_size in found), strict=True):
        assert small["loss"] == pytest.approx(large["loss"], rel=1e-9)
        assert small["top1_correct"] == large["top1_correct"]


@pytest.mark.parametrize(("norm", "statistics"), [("gn", "batch_average"), ("bn", "sample")])
def test_statistics_that_a_method_has_not(composed: Compose, norm: str, statistics: str) -> None:
    config = composed("data=digits", "model=resnet14_mini", f"norm={norm}",
                      f"norm.test_statistics={statistics}")  # fmt: skip
    with pytest.raises(ConfigError, match=rf"norm\.test_statistics={statistics}: norm={norm} has"):
        prepare(config)
