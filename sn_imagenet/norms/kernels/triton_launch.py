"""Launch a Triton kernel without the cost of Triton's dispatch.

At each launch, ``kernel[grid](...)`` binds the arguments, specializes on each of them and looks up
the compiled variant in Python. This takes longer than small kernels run. The variant depends on the
tensors' dtypes, on whether their addresses are multiples of 16, and on the numbers and constants.
So the variant is stored at the first launch and launched directly from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 16
"""In bytes; the only alignment that Triton distinguishes."""

OPTIONS = {"enable_fp_fusion": True}
"""Compile options, unless a launch has its own. Triton 3.10 no longer fuses by default."""

# By kernel, device, dtypes, grid, numbers and constants. An entry holds the kernel itself, so that
# no other object can get its id.
_COMPILED: dict[tuple[Any, ...], tuple[Any, Callable[..., None], tuple[Any, ...]]] = {}


def call(
    kernel: Any,
    programs: int,
    tensors: Sequence[Tensor],
    numbers: tuple[float, ...],
    constants: Mapping[str, int | float | bool],
) -> None:
    """``kernel[(programs,)](*tensors, *numbers, **constants)`` on the tensors' device.

    Args:
        kernel: a ``triton.jit`` function that takes tensors, numbers and constants, in this order.
        constants: of the kernel's signature, and compile options; in the same order at all calls.
    """
    constants = {**OPTIONS, **constants}
    index = tensors[0].get_device()
    if index < 0:  # Triton's interpreter
        kernel[(programs,)](*tensors, *numbers, **constants)
        return
    if index != torch.cuda.current_device():
        with torch.cuda.device(index):
            call(kernel, programs, tensors, numbers, constants)
        return
    addresses = [tensor.data_ptr() for tensor in tensors]
    combined = 0
    for address in addresses:
        combined |= address
    if combined % _ALIGNMENT:
        kernel[(programs,)](*tensors, *numbers, **constants)
        return
    dtypes = tuple([tensor.dtype for tensor in tensors])
    key = (id(kernel), index, dtypes, programs, numbers, *constants.values())
    entry = _COMPILED.get(key)
    if entry is None:
        compiled = kernel[(programs,)](*tensors, *numbers, **constants)
        if compiled is None:  # the interpreter, with tensors on a GPU
            return
        rest = kernel.arg_names[len(tensors) + len(numbers) :]
        _COMPILED[key] = kernel, compiled[(programs, 1, 1)], tuple(constants[name] for name in rest)
        return
    _, run, last = entry
    stream = torch._C._cuda_getCurrentRawStream(index)
    run(*addresses, *numbers, *last, stream=stream)
