"""Everything random is a function of (seed, epoch, sample id): seeds and what is drawn by them.

No function here reads or changes torch's global random state for its caller, so neither the
order of access nor the number of workers or ranks nor a restart changes what is drawn.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class Key(NamedTuple):
    """What a data set is asked for: the ``sample`` (its index in the sorted data) as drawn in
    ``epoch``."""

    epoch: int
    sample: int


def derive_seed(purpose: str, *numbers: int) -> int:
    """A 64-bit seed: BLAKE2b of whole numbers (each of 64 bits, signed), apart by ``purpose``.

    ``purpose`` is at most 16 bytes; neighboring numbers give unrelated seeds.
    """
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    digest = hashlib.blake2b(packed, digest_size=8, person=purpose.encode()).digest()
    return int.from_bytes(digest, "little")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block torch's CPU generator is seeded by ``seed``; afterwards it is as before.

    Saving the state takes microseconds, where ``torch.random.fork_rng`` takes a hundred, and
    ``torch.manual_seed`` would also seed the CUDA devices.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def epoch_order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: a permutation, int64 ``[num_samples]``, by (seed, epoch) only."""
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    return torch.randperm(num_samples, generator=generator)
