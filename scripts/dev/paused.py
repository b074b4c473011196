"""Normalizers that take their time, so that whoever disturbs a run meets it on any machine.

In the folder that ``PAUSES`` names, a file with a class's name holds the seconds that each of its
layers waits in training; one with ``.held`` behind it names a path, and while both exist no
validation or evaluation gets on in a process that has trained; while one with ``.calibration``
exists no calibration does, which leaves word in one with ``.calibrating``. Files and not the config
say so: a run without pauses is the same experiment.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sn_imagenet.norms import BatchNorm2d, GroupNorm2d, SwitchNorm2d

_trained = False  # building a network runs it once too


def _pause(layer: nn.Module, _input: Any) -> None:
    global _trained
    _trained |= layer.training and torch.is_grad_enabled()
    if "PAUSES" not in os.environ or not _trained:
        return
    pause = Path(os.environ["PAUSES"], type(layer).__name__)
    with suppress(FileNotFoundError):
        if layer.training and torch.is_grad_enabled():
            time.sleep(float(pause.read_text()))
        elif layer.training:
            while pause.with_suffix(".calibration").exists():
                pause.with_suffix(".calibrating").touch()
                time.sleep(0.05)
        else:
            while Path(pause.with_suffix(".held").read_text().strip()).exists():
                time.sleep(0.05)


class _Paused(nn.Module):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_forward_pre_hook(_pause)


class BN(_Paused, BatchNorm2d):
    """Batch normalization, after a pause."""


class GN(_Paused, GroupNorm2d):
    """Group normalization, after a pause."""


class SN(_Paused, SwitchNorm2d):
    """Switchable normalization, after a pause."""
