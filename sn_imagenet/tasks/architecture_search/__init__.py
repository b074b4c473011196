"""Architecture search with a normalized LSTM controller (Sec. 4.4, Fig. 6(b))."""

from sn_imagenet.tasks.architecture_search.task import ArchitectureSearch
