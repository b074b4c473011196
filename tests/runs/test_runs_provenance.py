"""Provenance of results."""

from __future__ import annotations

import json

import torch

from sn_imagenet.runs.provenance import provenance


def test_provenance_records_code_versions_and_hardware() -> None:
    record = provenance(torch.device("cpu"))
    json.dumps(record, allow_nan=False)
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert {"python", "torchvision", "timm", "numpy"} <= record["versions"].keys()
    assert record["hardware"]["device"] == "cpu"
    hardware = record["hardware"]
    assert hardware["processor"]
    assert hardware["torch_cpu_capability"] in ("DEFAULT", "AVX2", "AVX512")
    assert ("avx2" in hardware["instruction_sets"]) == torch.cpu._is_avx2_supported()
    assert hardware["caches"] and "compiler" in hardware
    revision = record["git_revision"]
    assert revision is None or len(revision) == 40
    assert (record["git_dirty"] is None) == (revision is None)
