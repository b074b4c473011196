"""Normalisers that take their time in training, so that a job lasts as long on any machine.

How long, a file says and not the config: a run without pauses is the same experiment.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from sn_imagenet.norms import BatchNorm2d, GroupNorm2d, SwitchNorm2d


def _pause(layer: nn.Module, _input: Any) -> None:
    if layer.training and "PAUSES" in os.environ:
        with suppress(FileNotFoundError):
            time.sleep(float(Path(os.environ["PAUSES"], type(layer).__name__).read_text()))


class _Paused(nn.Module):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_forward_pre_hook(_pause)


class BN(_Paused, BatchNorm2d):
    """Batch normalisation, after a pause."""


class GN(_Paused, GroupNorm2d):
    """Group normalisation, after a pause."""


class SN(_Paused, SwitchNorm2d):
    """Switchable normalisation, after a pause."""
