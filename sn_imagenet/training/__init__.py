"""The training of a run."""

from sn_imagenet.training.in_flight import StepOutcome
from sn_imagenet.training.run import train
from sn_imagenet.training.stepper import Stepper

__all__ = ["StepOutcome", "Stepper", "train"]
