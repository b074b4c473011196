"""Seeds and permutations that depend only on (seed, epoch, sample id).

No function here uses or changes the caller's global random state of torch. So random draws do not
depend on the order of access, the number of workers or ranks, or a restart.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor


class Key(NamedTuple):
    """Key of a data set: ``sample`` (index in the sorted data), augmented as in ``epoch``."""

    epoch: int
    sample: int


def derive_seed(purpose: str, *numbers: int) -> int:
    """A 64-bit seed: BLAKE2b of int64 ``numbers``, personalized with ``purpose`` (max. 16 bytes).

    Adjacent numbers give unrelated seeds.
    """
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    digest = hashlib.blake2b(packed, digest_size=8, person=purpose.encode()).digest()
    return int.from_bytes(digest, "little")


def seeded_pass(
    draws: bool, device: torch.device, purpose: str, *numbers: int
) -> AbstractContextManager[None]:
    """Seed the global generators by ``numbers`` within the block, if the task draws from them."""
    if not draws:
        return nullcontext()
    seed = derive_seed(purpose, *numbers)
    return seeded(seed, device if device.type == "cuda" else None)


@contextmanager
def seeded(seed: int, cuda: torch.device | None = None) -> Iterator[None]:
    """Seed torch's CPU generator within the block, and restore its state afterwards; also that of
    the device ``cuda``, if given.

    Saving the state takes microseconds. ``torch.random.fork_rng`` takes a hundred, and
    ``torch.manual_seed`` would also seed the CUDA devices.
    """
    if cuda is not None:
        with torch.random.fork_rng(devices=[cuda]):
            torch.manual_seed(seed)
            yield
        return
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def epoch_order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """The sample order of an epoch: a permutation, int64 [num_samples], by (seed, epoch) only."""
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    return torch.randperm(num_samples, generator=generator)
