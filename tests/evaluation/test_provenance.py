"""Where a number comes from."""

from __future__ import annotations

import json

import torch

from sn_imagenet.evaluation.provenance import provenance


def test_provenance_names_code_versions_and_hardware() -> None:
    found = provenance(torch.device("cpu"))
    json.dumps(found, allow_nan=False)
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert {"python", "torchvision", "timm", "numpy"} <= found["versions"].keys()
    assert found["hardware"]["device"] == "cpu"
    assert found["hardware"]["processor"]
    revision = found["git_revision"]
    assert revision is None or len(revision) == 40
    assert (found["git_dirty"] is None) == (revision is None)
