"""Dropout before the classifier, with masks that do not depend on the placement."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class PlacedDropout:
    """Dropout of a layer's input [m, F], with masks that are a function of (seed, step, position).

    One generator draws the mask of the whole global batch, and each rank takes the rows of its own
    samples. So every placement drops the same features of the same samples.

    Args:
        layer: the classifier; dropout applies to its input in training mode.
        p: probability of dropping a feature.
        seed: of the run.
    """

    def __init__(self, layer: nn.Module, p: float, seed: int) -> None:
        self.p = p
        self.seed = seed
        self._step = 0
        self._positions: Tensor | None = None
        self._global_batch = 0
        layer.register_forward_pre_hook(self._drop)

    def set_position(self, step: int, positions: Tensor, global_batch: int) -> None:
        """Set the next samples' positions [m] in the global batch of ``step``."""
        self._step, self._positions, self._global_batch = step, positions, global_batch

    def _drop(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor] | None:
        if not layer.training or self._positions is None:
            return None
        (features,) = inputs
        key = np.random.SeedSequence([self.seed, self._step]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(key[0]))
        uniform = torch.rand(self._global_batch, features.shape[1], generator=generator)
        mask = uniform[self._positions] >= self.p
        if features.is_cuda:
            mask = mask.pin_memory().to(features.device, non_blocking=True)  # avoids a sync
        return (features * mask / (1 - self.p),)
