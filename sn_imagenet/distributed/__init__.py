"""Process groups, collectives, and the placement of replicas on ranks."""

from sn_imagenet.distributed.placement import (
    Batch,
    Microbatch,
    Placement,
    fitting_world_sizes,
    require_one_microbatch,
    samples_that_share_statistics,
    set_norm_replicas,
)
from sn_imagenet.distributed.precision import autocast_for, set_determinism, set_precision
from sn_imagenet.distributed.runtime import (
    LostPeerError,
    Session,
    all_reduce_sum,
    broadcast_object,
    choose_device,
    init_distributed,
    on_rank0,
    print_rank0,
    raise_on_all_ranks,
    rank,
    report_lost_peers,
    session,
    world_size,
)

__all__ = [
    "Batch",
    "LostPeerError",
    "Microbatch",
    "Placement",
    "Session",
    "all_reduce_sum",
    "autocast_for",
    "broadcast_object",
    "choose_device",
    "fitting_world_sizes",
    "init_distributed",
    "on_rank0",
    "print_rank0",
    "raise_on_all_ranks",
    "rank",
    "report_lost_peers",
    "require_one_microbatch",
    "samples_that_share_statistics",
    "session",
    "set_determinism",
    "set_norm_replicas",
    "set_precision",
    "world_size",
]
