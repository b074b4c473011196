"""Stage and convolution of each normalization layer, named as in Fig. 3."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.models import LayerPosition, build_model, layer_positions
from sn_imagenet.norms import norm_layers

Compose = Callable[..., ExperimentConfig]
BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}


@pytest.mark.parametrize("model", ["resnet50", "resnet50_mini"])
def test_the_53_positions_of_resnet50(composed: Compose, model: str) -> None:
    config = composed("data=digits", f"model={model}", "norm=sn")
    network = build_model(config.model, config.norm, config.protocol, 10, 0)
    expected = {"bn1": LayerPosition("res1", "7x7" if model == "resnet50" else "3x3")}
    for stage, blocks in BLOCKS.items():
        for block in range(blocks):
            prefix = f"layer{stage - 1}.{block}"
            for number, conv in ((1, "1x1"), (2, "3x3"), (3, "1x1")):
                expected[f"{prefix}.bn{number}"] = LayerPosition(f"res{stage}", conv)
            if block == 0:
                expected[f"{prefix}.downsample.1"] = LayerPosition(f"res{stage}", "shortcut")
    positions = layer_positions(network)
    assert positions == expected
    assert list(positions) == list(expected) == list(norm_layers(network))
    assert Counter(position.stage for position in positions.values()) == {
        "res1": 1, "res2": 10, "res3": 13, "res4": 19, "res5": 10
    }  # fmt: skip


@pytest.mark.parametrize("name", ["resnet26d", "regnetx_002", "efficientnet_b0"])
def test_other_networks_layers_have_positions(composed: Compose, name: str) -> None:
    config = composed("data=digits", f"model.name={name}", "norm=sn")
    network = build_model(config.model, config.norm, config.protocol, 10, 0)
    positions = layer_positions(network)
    assert list(positions) == list(norm_layers(network))
    convs = {position.conv for position in positions.values()}
    assert convs <= {"1x1", "3x3", "5x5", "7x7", "shortcut"}
    assert "shortcut" in convs or name == "efficientnet_b0"
