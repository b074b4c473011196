"""Settings and their placement on ranks; the processes of an experiment."""

from sn_imagenet.replicas.placement import Pass, Placement, fitting_world_sizes, tell_layers
from sn_imagenet.replicas.processes import (
    barrier,
    choose_device,
    from_rank_0,
    join,
    only_rank_0_on_stderr,
    rank,
    say,
    session,
    sum_over_ranks,
    together,
    world_size,
)

__all__ = [
    "Pass",
    "Placement",
    "barrier",
    "choose_device",
    "fitting_world_sizes",
    "from_rank_0",
    "join",
    "only_rank_0_on_stderr",
    "rank",
    "say",
    "session",
    "sum_over_ranks",
    "tell_layers",
    "together",
    "world_size",
]
