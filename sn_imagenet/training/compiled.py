"""A network's blocks under torch.compile, in the forward passes of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sn_imagenet.distributed import Placement, world_size
from sn_imagenet.errors import ConfigError
from sn_imagenet.norms import norm_layers


def blocks(network: nn.Module) -> list[nn.Module]:
    """The innermost modules below ``network`` that hold several normalization layers: the residual
    blocks of a ResNet.
    """
    return [block for child in network.children() for block in _innermost(child)]


def _innermost(module: nn.Module) -> list[nn.Module]:
    within = blocks(module)
    return within or ([module] if len(norm_layers(module)) > 1 else [])


def require_compilable(mode: str, placement: Placement, network: nn.Module) -> None:
    """Whether torch.compile can take the blocks of ``network``.

    Raises:
        ConfigError: there are none, or their statistics are summed over processes within them.
    """
    if not blocks(network):
        raise ConfigError(
            f"trainer.compile={mode}: the network has no blocks of several normalization layers to "
            "compile; use trainer.compile=false"
        )
    spanning = any(layer.needs_all_replicas for layer in norm_layers(network).values())
    if placement.ranks_per_replica > 1 or (spanning and world_size() > 1):
        most = 1 if spanning else placement.gpus
        raise ConfigError(
            f"trainer.compile={mode}: samples that share statistics lie on several processes, "
            "which exchange them within a block, and torch.compile has no such exchange; use "
            f"trainer.compile=false, or no more processes than {most}"
        )


def raise_recompile_limits() -> None:
    """So that torch.compile takes every block of every network of this process."""
    # Dynamo keeps what it compiled by code, which all blocks and networks share; past its limit,
    # which is for one module, it would refuse. Emptying it would throw away what is used later.
    torch._dynamo.config.recompile_limit = 1000
    torch._dynamo.config.accumulated_recompile_limit = 1000


class CompiledBlocks:
    """The blocks of a network, by code of torch.compile's own within :meth:`used` alone: what
    evaluates, calibrates, saves or exports it does not see that there is any.

    Blocks rather than the network: those of a stage are alike and compiled once. Inside, the layers
    are the plain formula, which the compiler fuses with what stands beside it.

    Args:
        mode: torch.compile's.
    """

    def __init__(self, network: nn.Module, mode: str) -> None:
        raise_recompile_limits()
        # A block's gradients are ready at once; there is nothing in it to split by buckets.
        torch._dynamo.config.optimize_ddp = False
        self._mode = mode
        self._forwards: list[tuple[dict[str, Any], Callable[..., Any]]] = [
            (vars(block), torch.compile(block.forward, mode=mode, fullgraph=True, dynamic=False))
            for block in blocks(network)
        ]

    def begin_step(self) -> None:
        """What the last step computed is not needed any more."""
        torch.compiler.cudagraph_mark_step_begin()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it, forward passes are the compiled ones, made when they are first needed.

        Raises:
            ConfigError: the compiler refuses.
        """
        for own, forward in self._forwards:
            own["forward"] = forward  # nn.Module's own way to set an attribute is slow
        try:
            yield
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ConfigError(
                f"trainer.compile={self._mode}: torch.compile does not take the network's blocks "
                f"({str(error).splitlines()[0]}); use trainer.compile=false"
            ) from error
        finally:
            for own, _ in self._forwards:
                del own["forward"]
