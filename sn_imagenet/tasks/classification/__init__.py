"""Image classification, the paper's main experiment (Sec. 4.1, Table 2)."""

from sn_imagenet.tasks.classification.task import Classification
