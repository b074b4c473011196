"""Settings and their placement on ranks; the processes of an experiment."""

from sn_imagenet.replicas.placement import (
    Pass,
    Placement,
    fitting_world_sizes,
    require_one_pass,
    tell_layers,
)
from sn_imagenet.replicas.precision import autocast_for, set_determinism, set_precision
from sn_imagenet.replicas.runtime import (
    LostPeerError,
    Session,
    choose_device,
    from_rank_0,
    join,
    lost_peers_told,
    rank,
    say,
    session,
    sum_over_ranks,
    to_device,
    together,
    world_size,
)

__all__ = [
    "LostPeerError",
    "Pass",
    "Placement",
    "Session",
    "autocast_for",
    "choose_device",
    "fitting_world_sizes",
    "from_rank_0",
    "join",
    "lost_peers_told",
    "rank",
    "require_one_pass",
    "say",
    "session",
    "set_determinism",
    "set_precision",
    "sum_over_ranks",
    "tell_layers",
    "to_device",
    "together",
    "world_size",
]
