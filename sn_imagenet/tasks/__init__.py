"""Tasks: what is trained, on which loss, and by which score it is judged.

``task.py`` is the interface, each subpackage one task. A task of your own is a subclass of
:class:`~sn_imagenet.tasks.task.Task` that ``task.target`` names (docs/tasks.md).
"""

from sn_imagenet.tasks.prepare import Prepared, prepare, require_same_data
from sn_imagenet.tasks.task import Clock, Evaluator, Losses, Optimization, Task, build_task

__all__ = [
    "Clock",
    "Evaluator",
    "Losses",
    "Optimization",
    "Prepared",
    "Task",
    "build_task",
    "prepare",
    "require_same_data",
]
