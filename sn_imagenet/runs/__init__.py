"""Run directories: their files, their lock, checkpoints, metrics and provenance."""

from sn_imagenet.runs.directory import RunDirectory, config_differences
from sn_imagenet.runs.files import RunError, write_atomically, write_json
from sn_imagenet.runs.metrics import MetricsLog
from sn_imagenet.runs.provenance import provenance
from sn_imagenet.runs.saver import CheckpointSaver

__all__ = [
    "CheckpointSaver",
    "MetricsLog",
    "RunDirectory",
    "RunError",
    "config_differences",
    "provenance",
    "write_atomically",
    "write_json",
]
