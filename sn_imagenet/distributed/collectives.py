"""What all ranks do together: output, errors, sums and values of rank 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sn_imagenet.environment import rank
from sn_imagenet.errors import UserError


def print_rank0(message: str) -> None:
    """Print a line, on rank 0 only."""
    if rank() == 0:
        print(message, flush=True)


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """If the block raises a UserError on any rank, raise the error of the lowest such rank on all.

    The block must not contain collectives. The error gets ``raised_on_all_ranks = True``.

    Raises:
        UserError: on all ranks, if the block raised one on any rank.
    """
    error: UserError | None = None
    try:
        yield
    except UserError as raised:
        error = raised
    if dist.is_initialized():
        errors: list[UserError | None] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, error)
        first = next((raised for raised in errors if raised is not None), None)
        if first is not None and (error is None or str(error) != str(first)):
            error = first
    if error is not None:
        error.raised_on_all_ranks = True
        raise error


Value = TypeVar("Value")


@contextmanager
def on_rank0(context: AbstractContextManager[Value]) -> Iterator[Value | None]:
    """Enter ``context`` on rank 0; the other ranks enter nothing and get None. Collective.

    Raises:
        UserError: on all ranks, if it could not be entered.
    """
    with ExitStack() as stack:
        value = None
        with raise_on_all_ranks():
            if rank() == 0:
                value = stack.enter_context(context)
        yield value


def broadcast_object(value: Any) -> Any:
    """Rank 0's ``value`` on every rank; it must be picklable."""
    if not dist.is_initialized():
        return value
    objects = [value]
    dist.broadcast_object_list(objects, src=0)
    return objects[0]


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Copy rank 0's values of ``tensors``, with one broadcast for each dtype. Collective."""
    _together(tensors, lambda flat: dist.broadcast(flat, src=0))


def average_tensors(tensors: Iterable[Tensor]) -> None:
    """Average each of ``tensors`` over all ranks, with one collective for each dtype."""
    _together(tensors, lambda flat: dist.all_reduce(flat.div_(dist.get_world_size())))


@torch.no_grad()
def _together(tensors: Iterable[Tensor], collective: Callable[[Tensor], object]) -> None:
    if not dist.is_initialized():
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        flat = torch.cat([tensor.flatten() for tensor in group])
        collective(flat)
        parts = flat.split([tensor.numel() for tensor in group])
        for tensor, part in zip(group, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum a tensor elementwise over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
