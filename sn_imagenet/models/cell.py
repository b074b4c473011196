"""Networks of two repeated convolutional cells: ENAS's micro search space (Pham et al. 2018).

An *architecture*, the content of ``architecture.json``, has a list for each block of both cells:
``{"normal": [[input, operation, input, operation], ...], "reduction": ...}``. A block adds two
operations. Their inputs are 0 and 1, the outputs of the layer before the last and of the last
layer, or an earlier block, from 2 on. What no block uses is the cell's output, through a 1x1
convolution. As in the search of ENAS's code, a reduction cell has stride 1 and follows a strided
reduction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sn_imagenet.errors import ConfigError

KERNELS = {"sep3x3": 3, "sep5x5": 5}  # of the operations with weights, which come first
WITHOUT_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg3x3": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "max3x3": lambda x: F.max_pool2d(x, 3, 1, 1),
    "identity": lambda x: x,
}
OPERATIONS = (*KERNELS, *WITHOUT_WEIGHTS)
CELLS = ("normal", "reduction")
Blocks = Sequence[Sequence[Any]]
Architecture = Mapping[str, Blocks]
NormLayer = Callable[[int], nn.Module]
# BN of shared weights: running statistics would be those of no architecture.
BATCH_STATISTICS = partial(nn.BatchNorm2d, track_running_stats=False)


def check_architecture(architecture: Any) -> None:
    """Raise ConfigError unless ``architecture`` has the blocks of two cells."""
    try:
        for cell in CELLS:
            for number, (first, op, second, other_op) in enumerate(architecture[cell]):
                if not all(type(i) is int and 0 <= i < number + 2 for i in (first, second)):
                    raise ValueError(f"block {number} has the inputs {first!r} and {second!r}")
                if unknown := {op, other_op} - set(OPERATIONS):
                    raise ValueError(f"unknown operation {unknown.pop()}")
    except (LookupError, TypeError, ValueError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"model.args.architecture: not the blocks of two cells ({reason}); expected the "
            "architecture.json of an architecture search"
        ) from error


def outputs_of(blocks: Blocks) -> list[int]:
    """The inputs and blocks that no block uses."""
    used = {source for first, _, second, _ in blocks for source in (first, second)}
    return [i for i in range(len(blocks) + 2) if i not in used]


class Cell(nn.Module):
    """Maps two inputs [N, C, H, W] to one.

    Args:
        blocks: the cell; or their number, for weights of every possible choice: those of an
            operation then depend on its block and its input.
    """

    def __init__(self, channels: int, blocks: Blocks | int, norm_layer: NormLayer) -> None:
        super().__init__()
        if isinstance(blocks, int):
            pairs = [(block, side) for block in range(blocks) for side in (0, 1)]
            choices = [(b, s, i, op) for b, s in pairs for i in range(b + 2) for op in KERNELS]
            outputs = list(range(blocks + 2))
        else:
            rows = enumerate(blocks)
            choices = [(b, s, row[2 * s], row[2 * s + 1]) for b, row in rows for s in (0, 1)]
            outputs = outputs_of(blocks)
        self.operations = nn.ModuleDict()
        for block, side, source, op in choices:
            if op in KERNELS:
                layer = _separable(channels, KERNELS[op], norm_layer)
                self.operations[f"{block}_{side}_{source}_{op}"] = layer
        self.outputs = nn.ModuleDict({str(i): _conv1x1(channels, channels) for i in outputs})
        self.norm = norm_layer(channels)

    def forward(self, first: Tensor, second: Tensor, blocks: Blocks) -> Tensor:
        states = [first, second]
        for block, row in enumerate(blocks):
            parts = []
            for side, (source, op) in enumerate((row[:2], row[2:])):
                key = f"{block}_{side}_{source}_{op}"
                operate = WITHOUT_WEIGHTS.get(op) or self.operations[key]
                parts.append(operate(states[source]))
            states.append(parts[0] + parts[1])
        # The sum of 1x1 convolutions is one over the concatenated states.
        parts = [self.outputs[str(i)](F.relu(states[i])) for i in outputs_of(blocks)]
        output: Tensor = self.norm(sum(parts[1:], parts[0]))
        return output


class _Reduction(nn.Module):
    """Halves the maps: two 1x1 convolutions of stride 2, the second shifted by one pixel."""

    def __init__(self, channels: int, own: int, norm_layer: NormLayer) -> None:
        super().__init__()
        self.straight = _conv1x1(channels, own // 2, 2)
        self.shifted = _conv1x1(channels, own - own // 2, 2)
        self.norm = norm_layer(own)

    def forward(self, x: Tensor) -> Tensor:
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        output: Tensor = self.norm(torch.cat([self.straight(x), self.shifted(shifted)], dim=1))
        return output


class CellNetwork(nn.Module):
    """Images [N, 3, S, S] to logits [N, K].

    Args:
        cells: number of normal cells; a reduction follows a third and two thirds of them.
        filters: channels of the first cells, doubled by each reduction.
        blocks: of each cell.
        architecture: None for the shared weights of all architectures, of which each forward pass
            gets one.
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
        architecture: Architecture | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("cells", cells), ("filters", filters), ("blocks", blocks)):
            if value < 1:
                raise ConfigError(f"model.args.{name}={value}: expected at least 1")
        self.architecture, self.blocks, self.num_classes = architecture, blocks, num_classes
        before = current = 3 * filters
        stem = nn.Conv2d(3, current, 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, norm_layer(current))
        self.kinds = ["normal"] * (cells + 2)
        for position in (cells // 3, 2 * (cells // 3) + 1):
            self.kinds[position] = "reduction"
        self.reductions, self.firsts, self.seconds, self.cells = (nn.ModuleList() for _ in range(4))
        for kind in self.kinds:
            if kind == "reduction":  # of both inputs: the last layer, and the one before, from it
                filters *= 2
                self.reductions.append(_Reduction(current, filters, norm_layer))
                first: nn.Module = _Reduction(current, filters, norm_layer)
                self.firsts.append(nn.Sequential(nn.ReLU(), first))
                current = filters
            else:
                self.reductions.append(nn.Identity())
                self.firsts.append(_with_channels(before, filters, norm_layer))
            self.seconds.append(_with_channels(current, filters, norm_layer))
            chosen = blocks if architecture is None else architecture[kind]
            self.cells.append(Cell(filters, chosen, norm_layer))
            before, current = current, filters
        self.dropout = nn.Dropout(dropout)
        self.num_features = current
        self.fc = nn.Linear(current, num_classes)

    def forward(self, images: Tensor, architecture: Architecture | None = None) -> Tensor:
        architecture = architecture or self.architecture
        assert architecture is not None, "shared weights need an architecture"
        before = current = self.stem(images)
        layers = zip(
            self.kinds, self.reductions, self.firsts, self.seconds, self.cells, strict=True
        )
        for kind, reduction, first, second, cell in layers:
            if kind == "reduction":
                before, current = current, reduction(current)
            output = cell(first(before), second(current), architecture[kind])
            before, current = current, output
        logits: Tensor = self.fc(self.dropout(F.relu(current).mean(dim=(2, 3))))
        return logits

    def get_classifier(self) -> nn.Linear:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes)


def build_cells(num_classes: int, norm_layer: NormLayer, **args: Any) -> CellNetwork:
    """The network of ``model.args.architecture``, with weights for its operations alone.

    Raises:
        ConfigError: the architecture is missing or malformed, or an argument is unknown.
    """
    if args.get("architecture") is None:
        raise ConfigError(
            "model.args.architecture is missing: model=cell needs the architecture.json that "
            "task=architecture_search writes into its run directory"
        )
    check_architecture(args["architecture"])
    try:
        return CellNetwork(num_classes, norm_layer, **args)
    except TypeError as error:
        raise ConfigError(f"model.args: {error}; expected cells and filters") from error


def _conv1x1(channels: int, own: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, own, 1, stride, bias=False)


def _with_channels(channels: int, own: int, norm_layer: NormLayer) -> nn.Module:
    if channels == own:
        return nn.Identity()
    return nn.Sequential(nn.ReLU(), _conv1x1(channels, own), norm_layer(own))


def _separable(channels: int, kernel: int, norm_layer: NormLayer) -> nn.Sequential:
    """ReLU, depthwise and pointwise convolution, normalization; twice."""
    depthwise = partial(nn.Conv2d, channels, channels, kernel, padding=kernel // 2)
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.ReLU(), depthwise(groups=channels, bias=False)]
        layers += [_conv1x1(channels, channels), norm_layer(channels)]
    return nn.Sequential(*layers)
