"""The blocks of a network under torch.compile, for the forward passes of training."""

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
    """The innermost modules inside ``network`` with several normalization layers: the residual
    blocks of a ResNet.
    """
    return [block for child in network.children() for block in _innermost(child)]


def _innermost(module: nn.Module) -> list[nn.Module]:
    inner = blocks(module)
    return inner or ([module] if len(norm_layers(module)) > 1 else [])


def require_compilable(mode: str, placement: Placement, network: nn.Module) -> None:
    """Require that torch.compile can compile the blocks of ``network``.

    Raises:
        ConfigError: the network has no blocks, or its blocks sum statistics over processes.
    """
    if not blocks(network):
        raise ConfigError(
            f"trainer.compile={mode}: the network has no blocks of several normalization layers to "
            "compile; use trainer.compile=false"
        )
    combines_replicas = any(layer.needs_all_replicas for layer in norm_layers(network).values())
    if placement.ranks_per_replica > 1 or (combines_replicas and world_size() > 1):
        max_processes = 1 if combines_replicas else placement.gpus
        raise ConfigError(
            f"trainer.compile={mode}: samples that share statistics are on several processes, and "
            "torch.compile does not support their communication within a block; use "
            f"trainer.compile=false, or no more processes than {max_processes}"
        )


def raise_recompile_limits() -> None:
    """Let torch.compile compile every block of every network in this process."""
    # Dynamo limits the compilations of one code object, and all blocks and networks share the code.
    # Resetting Dynamo instead would discard compilations that are needed later.
    torch._dynamo.config.recompile_limit = 1000
    torch._dynamo.config.accumulated_recompile_limit = 1000


class CompiledBlocks:
    """Compiled forward passes for the blocks of a network, used only inside :meth:`active`:
    evaluation, calibration, checkpoints and exports see the plain network.

    Blocks are compiled rather than the network because equal blocks of a stage are compiled once.
    Inside, layers use the plain formula, which the compiler fuses with the neighboring operations.

    Args:
        mode: ``mode`` of torch.compile.
    """

    def __init__(self, network: nn.Module, mode: str) -> None:
        raise_recompile_limits()
        # A block's gradients are ready all at once: splitting it by DDP buckets has no benefit.
        torch._dynamo.config.optimize_ddp = False
        self._mode = mode
        self._forwards: list[tuple[dict[str, Any], Callable[..., Any]]] = [
            (vars(block), torch.compile(block.forward, mode=mode, fullgraph=True, dynamic=False))
            for block in blocks(network)
        ]

    def begin_step(self) -> None:
        """Mark the outputs of the last step as no longer needed."""
        torch.compiler.cudagraph_mark_step_begin()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Use the compiled forward passes in this context; each is compiled at its first call.

        Raises:
            ConfigError: torch.compile fails.
        """
        for attributes, forward in self._forwards:
            attributes["forward"] = forward  # nn.Module.__setattr__ is slow
        try:
            yield
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ConfigError(
                f"trainer.compile={self._mode}: torch.compile cannot compile the network's blocks "
                f"({str(error).splitlines()[0]}); use trainer.compile=false"
            ) from error
        finally:
            for attributes, _ in self._forwards:
                del attributes["forward"]
