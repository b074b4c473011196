"""Slowed normalization layers, so that tests can interrupt a run at a chosen stage on any machine.

Files in the folder of the environment variable ``PAUSES`` control a class, by its name NAME:
``NAME`` has the seconds that each layer waits in training. ``NAME.held`` names a path; while both
exist, validation and evaluation wait, in a process that has trained. While ``NAME.calibration``
exists, calibration waits and creates ``NAME.calibrating``. They are not part of the config, so that
a run without pauses is the same experiment.
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

_trained = False  # building a network already runs it once


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


class _Slowed(nn.Module):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_forward_pre_hook(_pause)


class BN(_Slowed, BatchNorm2d):
    """Batch normalization, after a pause."""


class GN(_Slowed, GroupNorm2d):
    """Group normalization, after a pause."""


class SN(_Slowed, SwitchNorm2d):
    """Switchable normalization, after a pause."""
