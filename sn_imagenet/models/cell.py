"""Networks of two repeated convolutional cells: ENAS's micro search space (Pham et al. 2018).

A cell has two inputs, the outputs of the two layers before it, and ``blocks`` blocks. A block adds
two operations, each applied to an input of the cell or to an earlier block. Whatever no block uses
is the cell's output, through a 1x1 convolution. Each reduction halves the maps and doubles the
channels. As in ENAS's code, a reduction cell has stride 1 and follows a strided reduction.

``architecture.json`` lists the blocks of both cells: ``{"normal": [[input, operation, input,
operation], ...], "reduction": ...}``. Inputs are numbered: 0 and 1 are the layers before the
previous and the previous layer, 2 the first block. Code passes the same choices as integers, in the
same order, normal cell first: *decisions*, 8 per block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sn_imagenet.errors import ConfigError

OPERATIONS = ("sep3x3", "sep5x5", "avg3x3", "max3x3", "identity")
KERNELS = (3, 5)  # of the operations with weights, which come first
CELLS = ("normal", "reduction")
NormLayer = Callable[[int], nn.Module]
# BN of shared weights: running statistics would be those of no architecture.
BATCH_STATISTICS = partial(nn.BatchNorm2d, track_running_stats=False)


def to_architecture(decisions: Sequence[int]) -> dict[str, list[list[Any]]]:
    """The content of ``architecture.json`` for ``decisions``."""
    named = [OPERATIONS[d] if i % 2 else d for i, d in enumerate(decisions)]
    blocks = [named[i : i + 4] for i in range(0, len(named), 4)]
    return {"normal": blocks[: len(blocks) // 2], "reduction": blocks[len(blocks) // 2 :]}


def to_decisions(architecture: Any) -> list[int]:
    """The inverse of :func:`to_architecture`.

    Raises:
        ConfigError: ``architecture`` does not list the blocks of two cells.
    """
    try:
        cells = [list(architecture[name]) for name in CELLS]
        for blocks in cells:
            for number, (first, _, second, _) in enumerate(blocks):
                if not all(type(i) is int and 0 <= i < number + 2 for i in (first, second)):
                    raise ValueError(f"block {number} has the inputs {first!r} and {second!r}")
        if not cells[0] or len(cells[0]) != len(cells[1]):
            raise ValueError(f"its cells have {len(cells[0])} and {len(cells[1])} blocks")
        values = list(chain.from_iterable(chain.from_iterable(cells)))
        if unknown := [name for name in values[1::2] if name not in OPERATIONS]:
            raise ValueError(f"unknown operation {unknown[0]}")
        return [OPERATIONS.index(v) if i % 2 else v for i, v in enumerate(values)]
    except (LookupError, TypeError, ValueError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"model.args.architecture: not the blocks of two cells ({reason}); expected the "
            "architecture.json of an architecture search"
        ) from error


class Cell(nn.Module):
    """Maps two inputs [N, C, H, W] to one.

    Args:
        choices: (input, operation) of each of the 2 * blocks operations. None: weights for every
            possible choice; an operation's weights then depend on its block and its input.
    """

    def __init__(
        self,
        channels: int,
        blocks: int,
        norm_layer: NormLayer,
        choices: Sequence[tuple[int, int]] | None,
    ) -> None:
        super().__init__()
        self.operations = nn.ModuleDict()
        for position in range(2 * blocks):
            every = [(i, op) for i in range(position // 2 + 2) for op in range(len(KERNELS))]
            for source, op in every if choices is None else [choices[position]]:
                if op < len(KERNELS):
                    key = f"{position}_{source}_{OPERATIONS[op]}"
                    self.operations[key] = _separable(channels, KERNELS[op], norm_layer)
        outputs = range(blocks + 2) if choices is None else _outputs(choices)
        self.outputs = nn.ModuleDict({str(i): _conv1x1(channels, channels) for i in outputs})
        self.norm = norm_layer(channels)

    def forward(self, first: Tensor, second: Tensor, choices: Sequence[tuple[int, int]]) -> Tensor:
        states = [first, second]
        for block in range(len(choices) // 2):
            pair = (2 * block, 2 * block + 1)
            left, right = (self._operate(i, states[choices[i][0]], *choices[i]) for i in pair)
            states.append(left + right)
        # The sum of 1x1 convolutions is one over the concatenated states.
        parts = [self.outputs[str(i)](F.relu(states[i])) for i in _outputs(choices)]
        output: Tensor = self.norm(sum(parts[1:], parts[0]))
        return output

    def _operate(self, position: int, x: Tensor, source: int, op: int) -> Tensor:
        name = OPERATIONS[op]
        if name == "identity":
            return x
        if name == "avg3x3":
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        if name == "max3x3":
            return F.max_pool2d(x, 3, 1, 1)
        output: Tensor = self.operations[f"{position}_{source}_{name}"](x)
        return output


def _outputs(choices: Sequence[tuple[int, int]]) -> list[int]:
    """The states that no block uses."""
    used = {source for source, _ in choices}
    return [i for i in range(len(choices) // 2 + 2) if i not in used]


class _Layer(nn.Module):
    """A cell with what brings its inputs to its size and channels."""

    def __init__(
        self,
        kind: str,
        channels: tuple[int, int, int],
        blocks: int,
        norm_layer: NormLayer,
        choices: Sequence[tuple[int, int]] | None,
    ) -> None:
        super().__init__()
        self.kind = kind
        before, current, own = channels
        self.reduction: nn.Module = nn.Identity()
        if kind == "reduction":
            self.reduction = _Reduction(current, own, norm_layer)
            self.first: nn.Module = nn.Sequential(nn.ReLU(), _Reduction(current, own, norm_layer))
            self.second: nn.Module = nn.Identity()
        else:
            self.first = _with_channels(before, own, norm_layer)
            self.second = _with_channels(current, own, norm_layer)
        self.cell = Cell(own, blocks, norm_layer, choices)

    def forward(
        self, before: Tensor, current: Tensor, choices: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        if self.kind == "reduction":
            before, current = current, self.reduction(current)
        return current, self.cell(self.first(before), self.second(current), choices)


class _Reduction(nn.Module):
    """Halves the maps: two 1x1 convolutions of stride 2, the second shifted by one pixel."""

    def __init__(self, channels: int, own: int, norm_layer: NormLayer) -> None:
        super().__init__()
        self.straight = _conv1x1(channels, own // 2, stride=2)
        self.shifted = _conv1x1(channels, own - own // 2, stride=2)
        self.norm = norm_layer(own)

    def forward(self, x: Tensor) -> Tensor:
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        output: Tensor = self.norm(torch.cat([self.straight(x), self.shifted(shifted)], dim=1))
        return output


class CellNetwork(nn.Module):
    """Images [N, 3, S, S] to logits [N, K].

    Args:
        cells: number of normal cells; a reduction follows a third and two thirds of them.
        filters: channels of the first cells.
        blocks: of each cell.
        decisions: the architecture. None: the shared weights of all architectures, of which each
            forward pass gets one.
        dropout: probability of dropping an input of the classifier.
    """

    def __init__(
        self,
        num_classes: int,
        norm_layer: NormLayer = BATCH_STATISTICS,
        *,
        cells: int = 6,
        filters: int = 20,
        blocks: int = 5,
        decisions: Sequence[int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("cells", cells, 1),
            ("filters", filters, 2),
            ("blocks", blocks, 1),
        ):
            if value < least:
                raise ConfigError(f"model.args.{name}={value}: expected at least {least}")
        self.choices = None if decisions is None else choices_of(decisions)
        reductions = (cells // 3, 2 * (cells // 3) + 1)
        before = current = 3 * filters
        self.stem = nn.Sequential(
            nn.Conv2d(3, current, 3, padding=1, bias=False), norm_layer(current)
        )
        layers = []
        for number in range(cells + 2):
            kind = CELLS[number in reductions]
            own = filters * 2 ** sum(number >= reduction for reduction in reductions)
            chosen = None if self.choices is None else self.choices[kind]
            layers.append(_Layer(kind, (before, current, own), blocks, norm_layer, chosen))
            before, current = own if kind == "reduction" else current, own
        self.layers = nn.ModuleList(layers)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(current, num_classes)
        self.num_classes = num_classes
        self.blocks = blocks

    def forward(self, images: Tensor, decisions: Sequence[int] | None = None) -> Tensor:
        choices = self.choices if decisions is None else choices_of(decisions)
        assert choices is not None, "shared weights need an architecture"
        before = current = self.stem(images)
        for layer in self.layers:
            before, current = layer(before, current, choices[str(layer.kind)])
        logits: Tensor = self.fc(self.dropout(F.relu(current).mean(dim=(2, 3))))
        return logits

    def get_classifier(self) -> nn.Linear:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(self.fc.in_features, num_classes)


def build_cells(num_classes: int, norm_layer: NormLayer, **args: Any) -> CellNetwork:
    """The network of ``model.args.architecture``, with weights for its operations alone.

    Raises:
        ConfigError: the architecture is missing or malformed, or an argument is unknown.
    """
    architecture = args.pop("architecture", None)
    if architecture is None:
        raise ConfigError(
            "model.args.architecture is missing: model=cell needs the architecture.json that "
            "task=architecture_search writes into its run directory"
        )
    decisions = to_decisions(architecture)
    args["blocks"] = len(decisions) // 8
    try:
        return CellNetwork(num_classes, norm_layer, decisions=decisions, **args)
    except TypeError as error:
        raise ConfigError(f"model.args: {error}; expected cells and filters") from error


def choices_of(decisions: Sequence[int]) -> dict[str, list[tuple[int, int]]]:
    """Cell -> (input, operation) of each of its operations."""
    pairs = list(zip(decisions[::2], decisions[1::2], strict=True))
    half = len(pairs) // 2
    return {"normal": pairs[:half], "reduction": pairs[half:]}


def _conv1x1(channels: int, own: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, own, 1, stride, bias=False)


def _with_channels(channels: int, own: int, norm_layer: NormLayer) -> nn.Module:
    if channels == own:
        return nn.Identity()
    return nn.Sequential(nn.ReLU(), _conv1x1(channels, own), norm_layer(own))


def _separable(channels: int, kernel: int, norm_layer: NormLayer) -> nn.Sequential:
    """ReLU, depthwise and pointwise convolution, normalization; twice."""
    layers: list[nn.Module] = []
    for _ in range(2):
        depthwise = nn.Conv2d(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False
        )
        layers += [nn.ReLU(), depthwise, _conv1x1(channels, channels), norm_layer(channels)]
    return nn.Sequential(*layers)
