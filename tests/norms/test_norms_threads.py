"""The number of threads of the C++ kernels does not change any bit of a result."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from norm_reference import BACKENDS
from torch import Tensor

from sn_imagenet.norms import (
    BatchNorm2d,
    GroupNorm2d,
    LayerNorm2d,
    MomentNorm2d,
    SwitchNorm2d,
    set_replicas,
)
from sn_imagenet.norms.mixture import MixtureNorm2d

pytestmark = pytest.mark.skipif("cpp" not in BACKENDS, reason="no C++ compiler")


class LayerInGroups2d(MixtureNorm2d):
    """Tables of different lengths, all split by rows among the threads."""

    omega = ("in", "ln", "bn", "gn")
    num_groups = 32

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.mean_weight = torch.nn.Parameter(torch.linspace(-1, 1, 4))
        self.var_weight = torch.nn.Parameter(torch.linspace(1, -1, 4))

    @property
    def logits(self) -> tuple[Tensor, Tensor]:
        return self.mean_weight, self.var_weight


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run_layer(method: type[MomentNorm2d], layout: torch.memory_format, count: int) -> list[Tensor]:
    """Output, gradients and running statistics; the tables are long enough for several threads."""
    torch.manual_seed(0)
    torch.set_num_threads(count)
    layer = method(2048)
    set_replicas(layer, 4)
    x = torch.randn(32, 2048, 2, 2).to(memory_format=layout).requires_grad_()
    y = layer(x)
    (y * torch.arange(y.numel()).view_as(y).cos()).sum().backward()
    gradients = [parameter.grad for parameter in layer.parameters()]
    assert x.grad is not None and None not in gradients
    return [y.detach(), x.grad, *gradients, *layer.buffers()]  # type: ignore[list-item]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "method", [BatchNorm2d, LayerNorm2d, GroupNorm2d, SwitchNorm2d, LayerInGroups2d]
)
def test_the_number_of_threads_changes_no_bit(
    threads: None, method: type[MomentNorm2d], layout: torch.memory_format
) -> None:
    single = run_layer(method, layout, 1)
    for count in (2, 3, 5):
        for expected, actual in zip(single, run_layer(method, layout, count), strict=True):
            assert torch.equal(expected, actual)
