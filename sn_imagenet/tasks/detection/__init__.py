"""Object detection and instance segmentation (paper Sec. 4.2, Tables 3, 4 and 5)."""

from sn_imagenet.tasks.detection.task import Detection
