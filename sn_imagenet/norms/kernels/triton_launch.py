"""Launching a kernel without asking Triton each time which of its compiled forms that takes.

``kernel[grid](...)`` binds the arguments, specializes on every one of them and looks the compiled
form up, in Python, at each launch: longer than small kernels run. The form depends on the tensors'
dtypes, on whether their addresses are multiples of 16, and on the numbers and constants; so what
Triton found for them once is kept, and started directly from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 16
"""Bytes; the only alignment that Triton tells apart."""

# By kernel, device, dtypes, grid, numbers and constants. The kernel itself beside its id, which
# no other object can have while it lives.
_READY: dict[tuple[Any, ...], tuple[Any, Callable[..., None], tuple[Any, ...]]] = {}


def call(
    kernel: Any,
    programs: int,
    tensors: Sequence[Tensor],
    numbers: tuple[float, ...],
    constants: Mapping[str, int | float | bool],
) -> None:
    """``kernel[(programs,)](*tensors, *numbers, **constants)`` on the tensors' device.

    Args:
        kernel: a function under ``triton.jit`` that takes tensors, numbers and constants in this
            order.
        constants: those of its signature and compile options, in one order at all calls.
    """
    index = tensors[0].get_device()
    if index < 0:  # Triton's interpreter
        kernel[(programs,)](*tensors, *numbers, **constants)
        return
    if index != torch.cuda.current_device():
        with torch.cuda.device(index):
            call(kernel, programs, tensors, numbers, constants)
        return
    addresses = [tensor.data_ptr() for tensor in tensors]
    together = 0
    for address in addresses:
        together |= address
    if together % _ALIGNMENT:
        kernel[(programs,)](*tensors, *numbers, **constants)
        return
    dtypes = tuple([tensor.dtype for tensor in tensors])
    key = (id(kernel), index, dtypes, programs, numbers, *constants.values())
    ready = _READY.get(key)
    if ready is None:
        compiled = kernel[(programs,)](*tensors, *numbers, **constants)
        if compiled is None:  # the interpreter's, on a GPU's tensors
            return
        rest = kernel.arg_names[len(tensors) + len(numbers) :]
        _READY[key] = kernel, compiled[(programs, 1, 1)], tuple(constants[name] for name in rest)
        return
    _, start, last = ready
    stream = torch._C._cuda_getCurrentRawStream(index)
    start(*addresses, *numbers, *last, stream=stream)
