"""Stylization, Sec. 4.3 and Figs. 6(a) and 9 of the paper: Johnson et al. (arXiv 1603.08155)."""

from sn_imagenet.tasks.stylization.stylize import stylize_folder
from sn_imagenet.tasks.stylization.task import Stylization
