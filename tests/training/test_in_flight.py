"""Steps that are read late change nothing, and nothing reads them sooner."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from sn_imagenet.distributed import Placement
from sn_imagenet.models import PlacedDropout, build_model
from sn_imagenet.runs import checkpoint
from sn_imagenet.training import Stepper, in_flight, stepper, train

DEPTH = 2
# Whatever brings a number from the device to the host; dispatch modes miss some of them.
READS = ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__")
TINY = ("data=digits", "model=resnet14_mini", "batch=8x2", "norm=sn", "evaluate=false")
PAST_ONE_EPOCH = ("data.subset=0.1", "trainer.max_steps=12", "trainer.log_every=3")


@pytest.fixture
def run_at(composed, tmp_path, monkeypatch):
    """``run_at(depth, ...)``: result, checkpoint and rows of a run with so many steps in flight."""

    def run(depth, *overrides):
        monkeypatch.setitem(in_flight.IN_FLIGHT, "cpu", depth)
        config = composed(*TINY, f"run_dir={tmp_path / str(depth)}", *overrides)
        result = train(config)
        rows = (tmp_path / str(depth) / "metrics.jsonl").read_text().splitlines()
        return result, checkpoint.load(tmp_path / str(depth) / "last.pt"), rows

    return run


def untimed(rows):
    read = map(json.loads, rows)
    return [
        {k: v for k, v in row.items() if k not in ("images_per_s", "data_wait_pct", "time")}
        for row in read
    ]


def assert_same(one, other, path=""):
    if isinstance(one, Tensor):
        assert torch.equal(one.nan_to_num(), other.nan_to_num()), path
        assert torch.equal(one.isnan(), other.isnan()), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            if key not in ("seconds", "total_seconds", "waited", "metrics", "config"):
                assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{path}.{index}")
    else:
        assert one == other, path


@pytest.mark.slow
def test_a_run_whose_steps_are_read_late_is_the_same(run_at):
    """Weights, momentum, statistics, meters and rows, over the end of an epoch."""
    _, now, rows = run_at(0, *PAST_ONE_EPOCH)
    _, late, late_rows = run_at(DEPTH, *PAST_ONE_EPOCH)
    assert now["step"] == 12 and now["epoch"] == 1
    assert_same(now, late)
    assert untimed(rows) == untimed(late_rows)


@pytest.fixture
def broken_batch(monkeypatch):
    """The fourth batch is not finite, the others are."""
    real = stepper.to_device
    calls = []

    def give(batch, device):
        calls.append(None)
        images, labels = real(batch, device)
        return (images * math.nan if len(calls) == 4 else images), labels

    monkeypatch.setattr(stepper, "to_device", give)
    return calls


@pytest.mark.slow
def test_a_run_that_diverges_ends_with_the_weights_before_that_step(run_at, broken_batch):
    result, now, _ = run_at(0, "trainer.max_steps=9")
    broken_batch.clear()
    late_result, late, _ = run_at(DEPTH, "trainer.max_steps=9")
    assert len(broken_batch) == 4 + DEPTH
    assert now["step"] == 3 and result["diverged"]["step"] == 4
    assert late_result["diverged"] == result["diverged"]
    assert_same(now, late)


def stepper_of(config, device="cpu"):
    placement = Placement(config.batch.gpus, config.batch.samples_per_gpu)
    network = build_model(config.model, config.norm, config.protocol, 10, config.seed)
    network.to(device, memory_format=torch.channels_last)
    dropout = PlacedDropout(network.get_classifier(), 0.2, config.seed)
    return Stepper(network, config, placement, torch.device(device), dropout)


def batch(config):
    images = torch.randn(config.batch.total, 3, 8, 8)
    return images, torch.randint(10, (config.batch.total,))


def test_no_step_reads_what_the_device_holds(composed, monkeypatch):
    made = stepper_of(composed(*TINY))
    images, labels = batch(composed(*TINY))
    reads = []

    def counted(name, real):
        def read(*args, **kwargs):
            reads.append(name)
            return real(*args, **kwargs)

        return read

    for name in READS:
        monkeypatch.setattr(Tensor, name, counted(name, getattr(Tensor, name)))
    launched = []
    for step in range(3):
        launched.append(made.forward_backward(images, labels, step, [False, False]))
        made.optimizer_step(0.1)
    assert reads == []
    outcomes = [step.read() for step in launched]
    assert reads == ["tolist"] * 3
    assert [outcome.step for outcome in outcomes] == [0, 1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_waits_for_a_cuda_device(composed):
    config = composed(*TINY)
    made = stepper_of(config, "cuda")
    images, labels = (part.cuda() for part in batch(config))
    for _ in range(3):  # cuDNN chooses, Triton compiles
        made.forward_backward(images, labels, 0, [False, False]).read()
        made.optimizer_step(0.1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = []
        for step in range(3):
            launched.append(made.forward_backward(images, labels, step, [False, False]))
            made.optimizer_step(0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(step.read().is_finite for step in launched)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_after_a_loss_that_is_not_finite_no_step_moves_a_weight(composed, precision):
    """The very first too, whose momentum is not left as memory was found."""
    made = stepper_of(composed(*TINY))
    if precision == "fp16":
        made.scaler = torch.amp.GradScaler("cpu")
    images, labels = batch(composed(*TINY))
    before = {name: p.detach().clone() for name, p in made.network.named_parameters()}
    for step, scale in enumerate((math.inf, 1.0, 1.0)):
        outcome = made.forward_backward(images * scale, labels, step).read()
        assert outcome.is_finite == (scale == 1.0)
        made.optimizer_step(0.1)
    assert_same(before, {name: p.detach() for name, p in made.network.named_parameters()})
    for state in made.optimizer.state.values():
        assert not state["momentum_buffer"].any()


def test_a_checkpoint_of_a_plain_optimizer_goes_on_fused(composed):
    made = stepper_of(composed(*TINY))
    state = made.state_dict()
    state["optimizer"]["state"] = {}  # of before the first step
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = None
    made.load_state_dict(state)
    assert all(group["fused"] for group in made.optimizer.param_groups)
    buffers = [state["momentum_buffer"] for state in made.optimizer.state.values()]
    assert len(buffers) == len(list(made.network.parameters()))
    assert not any(buffer.any() for buffer in buffers)


def test_saving_reads_ahead_and_records_once():
    """Rank 0 saves alone: what it reads then is acted upon when the other ranks do."""
    steps = [in_flight.LaunchedStep(s, torch.tensor([2.0, 1, s == 0, 0]), 2) for s in range(3)]
    recorded = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(in_flight.IN_FLIGHT, "cpu", DEPTH)
        queue = in_flight.StepsInFlight(torch.device("cpu"), lambda o: recorded.append(o.step))
    queue.add(steps[0])
    queue.add(steps[1])
    assert queue.due() == (False, False) and recorded == []
    assert queue.read_all() and recorded == [0, 1]
    queue.add(steps[2])
    assert queue.due() == (True, False) and recorded == [0, 1]
    queue.add(in_flight.LaunchedStep(3, torch.tensor([math.nan, 0, 0, 0]), 2))
    assert not queue.read_all() and recorded == [0, 1, 2]
    assert queue.due() == (False, False) and recorded == [0, 1, 2]
    with pytest.raises(in_flight.LossNotFiniteError, match="the loss is nan"):
        queue.all()
