"""One normalisation layer, forward and backward, on the shapes of ResNet-50."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from sn_imagenet.benchmark.contenders import (
    REFERENCE,
    RESIDUAL,
    SYNC,
    compiled_contenders,
    contenders,
    residual_contenders,
)
from sn_imagenet.benchmark.timing import StorageLog, alternate, geometric_mean
from sn_imagenet.norms.backends import select_backend

SHAPES = (
    (64, 112, 112),
    (64, 56, 56),
    (128, 56, 56),
    (256, 56, 56),
    (128, 28, 28),
    (256, 28, 28),
    (512, 28, 28),
    (256, 14, 14),
    (512, 14, 14),
    (1024, 14, 14),
    (512, 7, 7),
    (2048, 7, 7),
)
"""The 12 distinct (C, H, W) of ResNet-50's 53 normalisation layers at 224 pixels."""

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COPY = "copy"


@dataclass(frozen=True)
class Kind:
    """What is alike in the activations that one geometric mean is over: all but the shape.

    ``replicas`` sets of statistics of ``samples`` each make the batch.
    """

    samples: int
    layout: str
    dtype: str
    replicas: int = 1

    def __str__(self) -> str:
        batch = f"{self.replicas}x{self.samples}" if self.replicas > 1 else str(self.samples)
        return f"N={batch} {self.layout} {self.dtype}"

    @property
    def total(self) -> int:
        """N."""
        return self.replicas * self.samples


@dataclass
class Case:
    """Median seconds of forward + backward by contender, for one activation.

    ``copy`` is x.clone(). ``kept`` is what backward keeps beside the output, in activations:
    1 is x itself. ``backend`` is ours; ``absent`` says why a contender was not timed.
    """

    kind: Kind
    shape: tuple[int, int, int]
    backend: str
    seconds: dict[str, float]
    kept: dict[str, float]
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def reference(self) -> float:
        """Seconds of nn.BatchNorm2d, under the faster of its backends."""
        return min(s for name, s in self.seconds.items() if name.startswith(REFERENCE))

    def ratios(self) -> dict[str, float]:
        """Time over nn.BatchNorm2d's, by contender."""
        return {name: seconds / self.reference for name, seconds in self.seconds.items()}

    def copy_share(self, name: str) -> float:
        """Bytes that must move over time, as a share of the copy's (1 read, 1 write).

        A layer must read 6 and write 2 activations; with a residual and a ReLU it reads the
        residual once forward and, for the signs, twice backward, and writes its gradient: 9 and 3.
        """
        units = 2 if name == COPY else 12 if name in RESIDUAL else 8
        return units / 2 * self.seconds[COPY] / self.seconds[name]

    def as_dict(self) -> dict[str, object]:
        shares = {name: self.copy_share(name) for name in self.seconds}
        size = self.kind.total * self.shape[0] * self.shape[1] * self.shape[2]
        moved = 2 * size * DTYPES[self.kind.dtype].itemsize
        return {
            **asdict(self),
            "ratios": self.ratios(),
            "copy_bytes_per_second": moved / self.seconds[COPY],
            "copy_bandwidth_share": shares,
        }


def measure(
    kind: Kind,
    shape: tuple[int, int, int],
    device: torch.device,
    repeats: int,
    compiled: bool = False,
    residual: bool = False,
) -> Case:
    """Time every contender on one random activation [kind.total, *shape] and one gradient of it.

    Every call makes the output and the gradients of x and of all parameters anew.
    """
    torch.manual_seed(0)
    memory_format = LAYOUTS[kind.layout]

    def activation() -> Tensor:
        values = torch.randn(kind.total, *shape, device=device).to(DTYPES[kind.dtype])
        return values.contiguous(memory_format=memory_format)

    x, grad = activation().requires_grad_(), activation()
    eager = contenders(x, kind.replicas)
    if residual:
        eager |= residual_contenders(x, kind.replicas)
    kept = {}
    for name, contender in eager.items():
        with contender.around():
            kept[name] = _kept(contender.layer, x)
    layers = eager | (compiled_contenders(x, kind.replicas) if compiled else {})
    calls = {name: _step(contender.layer, x, grad) for name, contender in layers.items()}
    calls[COPY] = x.detach().clone
    around = {name: contender.around for name, contender in layers.items()}
    return Case(
        kind,
        shape,
        select_backend(x).name,
        alternate(calls, repeats, device, around),
        kept,
        {} if SYNC in eager else {SYNC: f"PyTorch has no {device.type.upper()} kernel"},
    )


def _step(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], object]:
    inputs = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), inputs, grad)


def _kept(layer: nn.Module, x: Tensor) -> float:
    with StorageLog() as log:
        y = layer(x)
    return 1 + log.alive(x, y, *layer.buffers()) / x.untyped_storage().nbytes()


def by_kind(cases: Sequence[Case]) -> dict[Kind, list[Case]]:
    groups: dict[Kind, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.kind, []).append(case)
    return groups


def geometric_means(cases: Sequence[Case]) -> dict[str, dict[str, dict[str, float]]]:
    """Over the shapes, by kind and contender: of the ratio to nn.BatchNorm2d its geometric mean
    and maximum, of the share of the copy's bandwidth the geometric mean."""
    return {
        str(kind): {
            name: {
                "geometric_mean": geometric_mean(case.ratios()[name] for case in members),
                "max": max(case.ratios()[name] for case in members),
                "copy_bandwidth_share": geometric_mean(c.copy_share(name) for c in members),
            }
            for name in members[0].seconds
            if all(name in case.seconds for case in members)
        }
        for kind, members in by_kind(cases).items()
    }
