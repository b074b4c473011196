"""The closed form of a mixture's [N, C] tables and their gradients, for kernels that have one.

Autograd on ``MixtureNorm2d.combine`` gives the same up to rounding. Is the closed form worth it?
``scripts/benchmark.py pooling --threads 1 --repeats 5`` compares both over the same C++ passes
(results/benchmarks/closed_form_cpu.json, and of two threads closed_form_cpu_2_threads.json, in
brackets: medians of 5 alternating rounds). resnet50_mini's step on 16 px takes autograd 2.65
(2.25) times as long with SN at (8,1), 2.19 (2.76) times at (8,2) and 1.87 (1.99) times at (8,8);
with BN 2.06, 2.14 and 1.57 (1.73, 2.09, 1.99) times. ResNet-50's step on 64 px at (8,2) takes it
1.28 (1.41) with SN and 1.22 (1.28) times with BN; a layer at N = 32 or 16x2 0.5 to 2.2 (0.8 to
3.4) times, the more the smaller its maps: there the walk over the tables costs more than the
passes, and the compiled node of the closed form leaves Python out. Compiled by torch.compile,
measured for SN's step at (8,2) alone before there was that node, it took 1.78 times as long where
eager autograd took 1.75 (closed_form_cpu_compiled.json). On CUDA, where the two were not timed,
the closed form takes four launches per layer, autograd 81 of PyTorch's operators with SN and 33
with BN (counted by tests/norms/triton_cases.py).
"""

from __future__ import annotations

from sn_imagenet.norms.closed_form.combiner import (
    MEMBERS,
    ClosedForm,
    Layout,
    Parameters,
    takes_parameters,
)
from sn_imagenet.norms.closed_form.cpp import CppTables
from sn_imagenet.norms.closed_form.triton_tables import TritonTables
from sn_imagenet.norms.kernels import Backend

__all__ = ["MEMBERS", "Layout", "Parameters", "closed_form_for", "takes_parameters"]

_BY_KERNELS: dict[str, type[ClosedForm]] = {
    form.kernels.name: form for form in (CppTables, TritonTables)
}


def closed_form_for(kernels: Backend) -> type[ClosedForm] | None:
    """The closed form beside these passes; None leaves the tables to autograd."""
    form = _BY_KERNELS.get(kernels.name)
    return form if form is not None and form.available() else None
