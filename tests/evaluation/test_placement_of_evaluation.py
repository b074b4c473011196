"""One trained network, evaluated by one and by two processes, with and without workers, in batches
of several sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from process_groups import run_programs

from sn_imagenet.config import ExperimentConfig, from_dict
from sn_imagenet.data.loaders import train_loader
from sn_imagenet.distributed import init_distributed, rank, session
from sn_imagenet.evaluation import evaluate, prepare
from sn_imagenet.evaluation.detail import Detail
from sn_imagenet.norms import set_replicas

pytestmark = [
    pytest.mark.slow,  # several evaluations, with workers and processes
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more than the cores
]

COUNTS = ("top1_correct", "top5_correct", "nonfinite", "seen")
Found = dict[str, tuple[dict[str, Any], torch.Tensor]]


@pytest.fixture(scope="module")
def trained(
    composed: Callable[..., ExperimentConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str]:
    """SN's config, and a file of weights from one epoch of replicas of 16 samples."""
    config = composed(
        "data=digits", "model=resnet14_mini", "norm=sn", "batch=8x2", "calibration.samples=150"
    )
    prepared = prepare(config)
    network = prepared.network.train()
    set_replicas(network, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    loader = train_loader(
        prepared.data.train, global_batch=32, rank=0, world_size=1, seed=0, workers=0
    )
    for images, labels in loader.epoch(0):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    weights = str(tmp_path_factory.mktemp("trained") / "weights.pt")
    torch.save(network.state_dict(), weights)
    return config.to_dict(), weights


def evaluated(values: dict[str, Any], weights: str, batch_size: int, workers: int) -> Found:
    """By statistics: the record, and the logits in the order of the data."""
    config = from_dict(values)
    config.trainer.eval_batch_size, config.data.workers = batch_size, workers
    prepared = prepare(config)
    prepared.network.load_state_dict(torch.load(weights))
    detail = partial(Detail, 10, 400, batch_size, prepared.device, keep_logits=True)
    found = {}
    for made in evaluate(prepared, new_detail=detail):
        assert made.detail is not None
        found[made.record["statistics"]] = made.record, made.detail.logits
    return found


def evaluate_as_program(trained: tuple[dict[str, Any], str], folder: str) -> None:
    with session():
        init_distributed()
        found = {case: evaluated(*trained, *case) for case in ((64, 1), (7, 0))}
        torch.save(found, f"{folder}/{rank()}.pt")


def test_processes_workers_and_batches_change_no_count(
    trained: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    expected = evaluated(*trained, 64, 0)
    top1 = {name: record["top1"] for name, (record, _) in expected.items()}
    assert top1.keys() == {"moving_average", "batch_average"}
    assert min(top1.values()) > 50  # it has learned: few images lie between two classes

    for ended in run_programs(2, evaluate_as_program, tmp_path, trained, str(tmp_path)):
        assert ended.code == 0, ended.err
    found = {
        (ranks, *case): evaluations
        for ranks in ("rank 0", "rank 1")
        for case, evaluations in torch.load(tmp_path / f"{ranks[-1]}.pt").items()
    }
    found |= {("alone", *case): evaluated(*trained, *case) for case in ((64, 4), (400, 0))}
    for (_, batch_size, _), evaluations in found.items():
        for name, (record, logits) in evaluations.items():
            reference, those = expected[name]
            assert [record[key] for key in COUNTS] == [reference[key] for key in COUNTS]
            assert record["loss"] == pytest.approx(reference["loss"], rel=1e-6)
            assert record["calibration"] == reference["calibration"]
            if batch_size == 64:
                assert logits.equal(those), "the same to the last bit"
            else:
                # PyTorch chooses other kernels for another batch, which round otherwise.
                torch.testing.assert_close(logits, those, rtol=1e-5, atol=1e-5)
