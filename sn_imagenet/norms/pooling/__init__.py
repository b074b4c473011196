"""Pooling of the [N, C] tables of a mixture in closed form, where the passes have one."""

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
