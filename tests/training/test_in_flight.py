"""Reading the outcomes of steps late changes nothing, and nothing reads them earlier."""

from __future__ import annotations

import json
import math

import pytest
import torch
from run_files import result_of
from steppers import make_stepper
from torch import Tensor

from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.distributed import Placement
from sn_imagenet.models import build_model
from sn_imagenet.runs import checkpoint
from sn_imagenet.training import in_flight, train

DEPTH = 2
# Methods that copy a number from the device to the host; dispatch modes miss some of them.
READS = ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__")
TINY = ("data=digits", "model=resnet14_mini", "batch=8x2", "norm=sn", "evaluate=false")
PAST_ONE_EPOCH = ("data.subset=0.1", "trainer.max_steps=12", "trainer.log_every=3")


@pytest.fixture
def run_at(composed, tmp_path, monkeypatch):
    """``run_at(depth, ...)``: result, checkpoint and rows of a run; ``depth`` steps in flight."""

    def run(depth, *overrides):
        monkeypatch.setitem(in_flight.IN_FLIGHT, "cpu", depth)
        config = composed(*TINY, f"run_dir={tmp_path / str(depth)}", *overrides)
        result = result_of(train(config))
        rows = (tmp_path / str(depth) / "metrics.jsonl").read_text().splitlines()
        return result, checkpoint.load(tmp_path / str(depth) / "last.pt"), rows

    return run


def without_times(rows):
    parsed = map(json.loads, rows)
    return [
        {k: v for k, v in row.items() if k not in ("images_per_s", "data_wait_pct", "time")}
        for row in parsed
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
def test_late_reading_does_not_change_a_run(run_at):
    """Weights, momentum, statistics, meters and rows, across the end of an epoch."""
    _, now, rows = run_at(0, *PAST_ONE_EPOCH)
    _, late, late_rows = run_at(DEPTH, *PAST_ONE_EPOCH)
    assert now["step"] == 12 and now["epoch"] == 1
    assert_same(now, late)
    assert without_times(rows) == without_times(late_rows)


@pytest.mark.slow
def test_a_run_interrupted_at_the_last_step_of_an_epoch_resumes_with_its_rate(
    composed, tmp_path, monkeypatch
):
    """The report of that epoch is written by the resumed run, which trains no step before it."""
    options = (*TINY, "data.subset=0.1", "trainer.max_steps=12")  # nine steps an epoch
    rows = []
    for name, interrupt in (("whole", None), ("interrupted", 9)):
        config = composed(*options, f"run_dir={tmp_path / name}")
        if interrupt is not None:
            real, calls = in_flight.StepsInFlight.pop_due, []

            def pop_due(queue, real=real, calls=calls, at=interrupt):
                calls.append(None)
                interrupted, failed = real(queue)
                return interrupted or len(calls) == at, failed

            with monkeypatch.context() as patch:
                patch.setattr(in_flight.StepsInFlight, "pop_due", pop_due)
                with pytest.raises(SystemExit):
                    train(config)
        train(config)
        rows.append((tmp_path / name / "metrics.jsonl").read_text().splitlines())
    assert without_times(rows[0]) == without_times(rows[1])
    assert json.loads(rows[1][0])["step"] == 9 and json.loads(rows[1][0])["lr"] > 0


@pytest.fixture
def broken_batch(monkeypatch):
    """The fourth batch is not finite; the others are."""
    real = ImageBatch.to
    calls = []

    def to(batch, device):
        calls.append(None)
        images, labels = real(batch, device)
        return ImageBatch(images * math.nan if len(calls) == 4 else images, labels)

    monkeypatch.setattr(ImageBatch, "to", to)
    return calls


@pytest.mark.slow
def test_a_diverged_run_ends_with_the_weights_before_that_step(run_at, broken_batch):
    result, now, _ = run_at(0, "trainer.max_steps=9")
    broken_batch.clear()
    late_result, late, _ = run_at(DEPTH, "trainer.max_steps=9")
    assert len(broken_batch) == 4 + DEPTH
    assert now["step"] == 3 and result["diverged"]["step"] == 4
    assert late_result["diverged"] == result["diverged"]
    assert_same(now, late)


def tiny_stepper(config, device="cpu"):
    placement = Placement(config.batch.gpus, config.batch.samples_per_gpu)
    network = build_model(config.model, config.norm, config.protocol, 10, config.seed)
    network.to(device, memory_format=torch.channels_last)
    return make_stepper(network, config, placement, device, dropout=0.2)


def batch(config):
    images = torch.randn(config.batch.total, 3, 8, 8)
    return ImageBatch(images, torch.randint(10, (config.batch.total,)))


def test_a_step_reads_nothing_from_the_device(composed, monkeypatch):
    stepper = tiny_stepper(composed(*TINY))
    samples = batch(composed(*TINY))
    reads = []

    def count_calls(name, real):
        def read(*args, **kwargs):
            reads.append(name)
            return real(*args, **kwargs)

        return read

    for name in READS:
        monkeypatch.setattr(Tensor, name, count_calls(name, getattr(Tensor, name)))
    launched = []
    for step in range(3):
        launched.append(stepper.forward_backward(samples, step, [False, False]))
        stepper.optimizer_step(0)
    assert reads == []
    outcomes = [step.read() for step in launched]
    assert reads == ["tolist"] * 3
    assert [outcome.step for outcome in outcomes] == [0, 1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_does_not_wait_for_a_cuda_device(composed):
    config = composed(*TINY)
    stepper = tiny_stepper(config, "cuda")
    samples = batch(config).to(torch.device("cuda"))
    for _ in range(3):  # cuDNN selects algorithms, Triton compiles
        stepper.forward_backward(samples, 0, [False, False]).read()
        stepper.optimizer_step(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = []
        for step in range(3):
            launched.append(stepper.forward_backward(samples, step, [False, False]))
            stepper.optimizer_step(0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(step.read().is_finite for step in launched)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_after_a_non_finite_loss_no_step_changes_a_weight(composed, precision):
    """Also at the first step, where momentum buffers must not stay uninitialized."""
    stepper = tiny_stepper(composed(*TINY))
    if precision == "fp16":
        stepper.scaler = torch.amp.GradScaler("cpu")
    images, labels = batch(composed(*TINY))
    before = {name: p.detach().clone() for name, p in stepper.network.named_parameters()}
    for step, scale in enumerate((math.inf, 1.0, 1.0)):
        outcome = stepper.forward_backward(ImageBatch(images * scale, labels), step).read()
        assert outcome.is_finite == (scale == 1.0)
        stepper.optimizer_step(0)
    assert_same(before, {name: p.detach() for name, p in stepper.network.named_parameters()})
    for state in stepper.optimizations["optimizer"].optimizer.state.values():
        assert not state["momentum_buffer"].any()


def test_a_checkpoint_of_a_plain_optimizer_resumes_with_the_fused_one(composed):
    stepper = tiny_stepper(composed(*TINY))
    state = stepper.state_dict()
    state["optimizer"]["state"] = {}  # as before the first step
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = None
    stepper.load_state_dict(state)
    optimizer = stepper.optimizations["optimizer"].optimizer
    assert all(group["fused"] for group in optimizer.param_groups)
    buffers = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert len(buffers) == len(list(stepper.network.parameters()))
    assert not any(buffer.any() for buffer in buffers)


def test_saving_reads_ahead_but_records_once():
    """Only rank 0 saves; it handles what it reads then at the same step as the other ranks."""
    sums = ("correct",)
    steps = [
        in_flight.LaunchedStep(s, torch.tensor([2.0, 1, s == 0, 0]), sums, 2) for s in range(3)
    ]
    recorded = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(in_flight.IN_FLIGHT, "cpu", DEPTH)
        queue = in_flight.StepsInFlight(torch.device("cpu"), lambda o: recorded.append(o.step))
    queue.add(steps[0])
    queue.add(steps[1])
    assert queue.pop_due() == (False, False) and recorded == []
    assert queue.read_all() and recorded == [0, 1]
    queue.add(steps[2])
    assert queue.pop_due() == (True, False) and recorded == [0, 1]
    queue.add(in_flight.LaunchedStep(3, torch.tensor([math.nan, 0, 0, 0]), sums, 2))
    assert not queue.read_all() and recorded == [0, 1, 2]
    assert queue.pop_due() == (False, False) and recorded == [0, 1, 2]
    with pytest.raises(in_flight.LossNotFiniteError, match="the loss is nan"):
        queue.pop_all()
