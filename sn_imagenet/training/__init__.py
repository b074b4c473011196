"""Training of a run: the loop, the optimizer step, resuming, stopping and metrics."""

from sn_imagenet.training.run import train
from sn_imagenet.training.stepper import Stepper
