"""One normalisation layer, forward and backward, on the shapes of ResNet-50."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from sn_imagenet.norms.backends import select_backend
from sn_imagenet.norms.benchmark.timing import StorageLog, alternate, geometric_mean
from sn_imagenet.norms.layers import BatchNorm2d, GroupNorm2d, InstanceNorm2d, LayerNorm2d
from sn_imagenet.norms.switch_norm import SwitchNorm2d

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
REFERENCE = "nn.BatchNorm2d"


class Fig7(nn.Module):
    """Fig. 7 of the paper as it is printed: nine passes over x forward, many more kept copies."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(channels, 1, 1))
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        w, v = self.mean_weight.softmax(0), self.var_weight.softmax(0)
        mean: Tensor = torch.zeros((), device=x.device)
        var: Tensor = torch.zeros((), device=x.device)
        for k, dims in enumerate(((2, 3), (1, 2, 3), (0, 2, 3))):
            member_var, member_mean = torch.var_mean(x, dims, correction=0, keepdim=True)
            mean, var = mean + w[k] * member_mean, var + v[k] * member_var
        return ((x - mean) / torch.sqrt(var + 1e-5) * self.gamma + self.beta).to(x.dtype)


def contenders(channels: int) -> dict[str, nn.Module]:
    """Layers by name: PyTorch's, the paper's code, and ours under the backend that they choose."""
    native = SwitchNorm2d(channels)
    native.backend = "native"
    return {
        REFERENCE: nn.BatchNorm2d(channels),
        "nn.GroupNorm(32)": nn.GroupNorm(32, channels),
        "Fig. 7": Fig7(channels),
        "SN": SwitchNorm2d(channels),
        "SN (native)": native,
        "BN": BatchNorm2d(channels),
        "GN": GroupNorm2d(channels),
        "LN": LayerNorm2d(channels),
        "IN": InstanceNorm2d(channels),
    }


def compiled_contenders(channels: int) -> dict[str, nn.Module]:
    """The same under torch.compile, which takes minutes over all shapes."""
    plain = {REFERENCE: nn.BatchNorm2d(channels), "SN": SwitchNorm2d(channels)}
    compiled: dict[str, nn.Module] = {}
    for name, layer in plain.items():
        layer.compile(dynamic=False)
        compiled[f"compile({name})"] = layer
    return compiled


@dataclass
class Case:
    """Median seconds of forward + backward by contender, for one activation.

    ``copy`` is x.clone(). ``kept`` is what backward keeps beside the output, in activations:
    1 is x itself.
    """

    samples: int
    shape: tuple[int, int, int]
    layout: str
    dtype: str
    backend: str
    seconds: dict[str, float]
    kept: dict[str, float]

    @property
    def group(self) -> str:
        """The activations that one geometric mean is over."""
        return f"N={self.samples} {self.layout} {self.dtype}"

    def ratios(self) -> dict[str, float]:
        """Time over nn.BatchNorm2d's, by contender."""
        reference = self.seconds[REFERENCE]
        return {name: seconds / reference for name, seconds in self.seconds.items()}

    def copy_share(self, name: str) -> float:
        """Bytes that must move (6 reads, 2 writes) over time, as a share of the copy's (1 + 1)."""
        return 4 * self.seconds["copy"] / self.seconds[name]

    def as_dict(self) -> dict[str, object]:
        shares = {name: self.copy_share(name) for name in self.seconds if name != "copy"}
        return {**asdict(self), "ratios": self.ratios(), "copy_bandwidth_share": shares}


def measure(
    samples: int,
    shape: tuple[int, int, int],
    layout: str,
    dtype: str,
    device: torch.device,
    repeats: int,
    compiled: bool = False,
) -> Case:
    """Time every contender on a random activation [samples, *shape]."""
    torch.manual_seed(0)
    memory_format = LAYOUTS[layout]

    def activation() -> Tensor:
        values = torch.randn(samples, *shape, device=device).to(DTYPES[dtype])
        return values.contiguous(memory_format=memory_format)

    x, grad = activation().requires_grad_(), activation()
    layers = contenders(shape[0])
    if compiled:
        layers |= compiled_contenders(shape[0])
    layers = {name: layer.to(device) for name, layer in layers.items()}
    calls: dict[str, Callable[[], object]] = {
        name: _step(layer, x, grad) for name, layer in layers.items()
    }
    calls["copy"] = x.detach().clone
    return Case(
        samples,
        shape,
        layout,
        dtype,
        select_backend(x).name,
        alternate(calls, repeats, device),
        {name: _kept(layer, x) for name, layer in layers.items() if "compile" not in name},
    )


def _step(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], object]:
    inputs = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), inputs, grad)


def _kept(layer: nn.Module, x: Tensor) -> float:
    with StorageLog() as log:
        y = layer(x)
    return 1 + log.alive(x, y, *layer.buffers()) / x.untyped_storage().nbytes()


def geometric_means(cases: list[Case]) -> dict[str, dict[str, dict[str, float]]]:
    """Over the shapes, by "samples layout dtype" and contender: ratio's mean and its maximum."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    return {
        group: {
            name: {
                "geometric_mean": geometric_mean([c.ratios()[name] for c in members]),
                "max": max(c.ratios()[name] for c in members),
            }
            for name in members[0].seconds
        }
        for group, members in groups.items()
    }
