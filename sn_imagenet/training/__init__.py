"""The training of a run."""

from sn_imagenet.training.run import train
from sn_imagenet.training.stepper import StepOutcome, Stepper

__all__ = ["StepOutcome", "Stepper", "train"]
