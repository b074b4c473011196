"""Data sets, augmentations and batches, all of them functions of (seed, epoch, sample id).

The names are :mod:`~sn_imagenet.data.face`'s, imported with the first of them that is used: it
needs torch, and what is wrong with a folder of images is told before.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sn_imagenet.data.face import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        return getattr(import_module(f"{__name__}.face"), name)
