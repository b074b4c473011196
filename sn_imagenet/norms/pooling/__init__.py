"""Pooling of the [N, C] tables of a mixture in closed form, where the passes have one.

Autograd on ``MixtureNorm2d.pool`` is the same up to rounding. Is the closed form worth its lines?
Against autograd over the same C++ passes, in CPU time on one thread of a busy 2-core machine
(medians of 9 alternating steps), resnet50_mini's step on 16 px takes autograd 1.82 times as long
with SN at (8,2), 1.45 times with BN there and 1.29 times with SN at (8,8): on small maps the walk
over the tables costs more than the passes. On CUDA autograd on the tables takes some eighty small
launches per layer, the closed form four. The pool under torch.compile was not measured.
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
