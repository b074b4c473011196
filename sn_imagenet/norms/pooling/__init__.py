"""Pooling of the [N, C] tables of a mixture in closed form, where the passes have one.

Autograd on ``MixtureNorm2d.pool`` is the same up to rounding. Is the closed form worth its lines?
``scripts/benchmark.py pooling --threads 1 --clock cpu --repeats 5`` compares both over the same C++
passes (results/benchmarks/closed_form_cpu.json: CPU time on one thread of a busy 2-core machine,
medians of 5 alternating rounds). resnet50_mini's step on 16 px takes autograd 1.91 times as long
with SN at (8,1), 1.67 times at (8,2) and 1.51 times at (8,8); with BN 1.44, 1.62 and 1.38 times.
ResNet-50's step on 64 px at (8,2) takes it 1.16 (SN) and 1.04 times (BN); a layer at N = 32 or 16x2
0.97 to 1.77 times, the more the smaller its maps: there the walk over the tables costs more than
the passes. Compiled by torch.compile, measured for SN's step at (8,2) alone, it took 1.78 times as
long where eager autograd took 1.75 (closed_form_cpu_compiled.json). Two threads: not measured. On
CUDA, where the two were not timed, the closed form takes four launches per layer, autograd 81 of
PyTorch's operators with SN and 33 with BN (counted by tests/norms/triton_cases.py).
"""

from __future__ import annotations

from sn_imagenet.norms.passes import Backend
from sn_imagenet.norms.pooling.closed_form import (
    MEMBERS,
    ClosedForm,
    Layout,
    Parameters,
    takes_parameters,
)
from sn_imagenet.norms.pooling.cpp import CppTables
from sn_imagenet.norms.pooling.triton_tables import TritonTables

__all__ = ["MEMBERS", "Layout", "Parameters", "closed_form_for", "takes_parameters"]

_BY_PASSES: dict[str, type[ClosedForm]] = {
    form.passes.name: form for form in (CppTables, TritonTables)
}


def closed_form_for(passes: Backend) -> type[ClosedForm] | None:
    """The closed form beside these passes; None leaves the tables to autograd."""
    form = _BY_PASSES.get(passes.name)
    return form if form is not None and form.available() else None
