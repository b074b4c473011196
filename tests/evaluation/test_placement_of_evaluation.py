"""The evaluation of a trained network does not depend on the number of processes, on the loader's
workers or on the batch size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from process_groups import run_programs

from sn_imagenet.config import ExperimentConfig, from_dict
from sn_imagenet.data.loaders import train_loader
from sn_imagenet.distributed import init_distributed, rank
from sn_imagenet.evaluation import evaluate
from sn_imagenet.norms import set_replicas
from sn_imagenet.session import session
from sn_imagenet.tasks import prepare

pytestmark = [
    pytest.mark.slow,  # several evaluations, with workers and processes
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than cores
]

COUNTS = ("top1_correct", "top5_correct", "nonfinite", "seen")
Results = dict[str, tuple[dict[str, Any], torch.Tensor]]


@pytest.fixture(scope="module")
def trained(
    composed: Callable[..., ExperimentConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str]:
    """SN's config and a weights file, after one epoch with replicas of 16 samples."""
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


def run_evaluation(values: dict[str, Any], weights: str, batch_size: int, workers: int) -> Results:
    """{statistics: (record, logits in the order of the data)}."""
    config = from_dict(values)
    config.trainer.eval_batch_size, config.data.workers = batch_size, workers
    prepared = prepare(config)
    prepared.network.load_state_dict(torch.load(weights))
    results = {}
    for evaluation in evaluate(prepared, artifacts={"save_logits": "logits.npz"}):
        logits = evaluation.evaluator.detail.logits  # type: ignore[union-attr]
        results[evaluation.record["statistics"]] = evaluation.record, logits
    return results


def evaluate_as_program(trained: tuple[dict[str, Any], str], folder: str) -> None:
    with session():
        init_distributed()
        results = {case: run_evaluation(*trained, *case) for case in ((64, 1), (7, 0))}
        torch.save(results, f"{folder}/{rank()}.pt")


def test_processes_workers_and_batch_sizes_do_not_change_the_results(
    trained: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    expected = run_evaluation(*trained, 64, 0)
    top1 = {name: record["top1"] for name, (record, _) in expected.items()}
    assert top1.keys() == {"moving_average", "batch_average"}
    assert min(top1.values()) > 50  # after training, few images lie between two classes

    for rank_result in run_programs(2, evaluate_as_program, tmp_path, trained, str(tmp_path)):
        assert rank_result.code == 0, rank_result.err
    results = {
        (rank_name, *case): evaluations
        for rank_name in ("rank 0", "rank 1")
        for case, evaluations in torch.load(tmp_path / f"{rank_name[-1]}.pt").items()
    }
    results |= {("single", *case): run_evaluation(*trained, *case) for case in ((64, 4), (400, 0))}
    for (_, batch_size, _), evaluations in results.items():
        for name, (record, logits) in evaluations.items():
            reference, expected_logits = expected[name]
            assert [record[key] for key in COUNTS] == [reference[key] for key in COUNTS]
            assert record["loss"] == pytest.approx(reference["loss"], rel=1e-6)
            assert record["calibration"] == reference["calibration"]
            if batch_size == 64:
                assert logits.equal(expected_logits), "not bit-identical"
            else:
                # PyTorch chooses other kernels for another batch size, with other rounding.
                torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
