"""What other rooms use of this one."""

from sn_imagenet.data.datasets import AugmentedDataset, DataSets, build
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.loaders import (
    CalibrationLoader,
    TrainBatchSampler,
    TrainLoader,
    calibration_loader,
    calibration_minibatches,
    eval_loader,
    train_loader,
)
from sn_imagenet.data.seeding import Key, epoch_order
from sn_imagenet.data.transforms import describe_augmentation

__all__ = [
    "AugmentedDataset",
    "CalibrationLoader",
    "DataError",
    "DataSets",
    "Key",
    "TrainBatchSampler",
    "TrainLoader",
    "build",
    "calibration_loader",
    "calibration_minibatches",
    "describe_augmentation",
    "epoch_order",
    "eval_loader",
    "train_loader",
]
