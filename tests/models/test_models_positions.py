"""Where a network's normalization layers stand, in the words of Fig. 3."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.models import LayerPosition, build_model, layer_positions
from sn_imagenet.norms import norm_layers

BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}


@pytest.mark.parametrize("model", ["resnet50", "resnet50_mini"])
def test_all_53_of_resnet50(composed: Callable[..., ExperimentConfig], model: str) -> None:
    config = composed("data=digits", f"model={model}", "norm=sn")
    network = build_model(config.model, config.norm, config.protocol, 10, 0)
    expected = {"bn1": LayerPosition("res1", "7x7" if model == "resnet50" else "3x3")}
    for stage, blocks in BLOCKS.items():
        for block in range(blocks):
            prefix = f"layer{stage - 1}.{block}"
            for number, place in ((1, "1x1"), (2, "3x3"), (3, "1x1")):
                expected[f"{prefix}.bn{number}"] = LayerPosition(f"res{stage}", place)
            if block == 0:
                expected[f"{prefix}.downsample.1"] = LayerPosition(f"res{stage}", "shortcut")
    found = layer_positions(network)
    assert found == expected
    assert list(found) == list(expected) == list(norm_layers(network))
    assert Counter(position.stage for position in found.values()) == {
        "res1": 1, "res2": 10, "res3": 13, "res4": 19, "res5": 10
    }  # fmt: skip


@pytest.mark.parametrize("name", ["resnet26d", "regnetx_002", "efficientnet_b0"])
def test_every_layer_of_another_network_has_a_place(
    composed: Callable[..., ExperimentConfig], name: str
) -> None:
    config = composed("data=digits", f"model.name={name}", "norm=sn")
    network = build_model(config.model, config.norm, config.protocol, 10, 0)
    found = layer_positions(network)
    assert list(found) == list(norm_layers(network))
    assert all(
        position.conv in ("1x1", "3x3", "5x5", "7x7", "shortcut") for position in found.values()
    )
    assert "shortcut" in {position.conv for position in found.values()} or name == "efficientnet_b0"
