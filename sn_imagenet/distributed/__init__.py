"""Process groups, collectives, and the placement of replicas on ranks."""

from sn_imagenet.distributed.collectives import (
    all_reduce_sum,
    average_tensors,
    broadcast_object,
    broadcast_tensors,
    on_rank0,
    print_rank0,
    raise_on_all_ranks,
)
from sn_imagenet.distributed.placement import (
    Batch,
    Microbatch,
    Placement,
    require_one_microbatch,
    samples_that_share_statistics,
)
from sn_imagenet.distributed.precision import (
    autocast_for,
    choose_device,
    convolution_dtype,
    describe_precision,
    set_determinism,
    set_precision,
)
from sn_imagenet.distributed.process_group import (
    LostPeerError,
    connect_store,
    init_distributed,
    report_lost_peers,
)
from sn_imagenet.environment import rank, world_size
