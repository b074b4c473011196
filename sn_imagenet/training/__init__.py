"""The training of a run."""

from sn_imagenet.training.stepper import StepOutcome, Stepper
from sn_imagenet.training.trainer import Trainer, train

__all__ = ["StepOutcome", "Stepper", "Trainer", "train"]
