"""The benchmark of detection: the same step with PyTorch's layers, and its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from coco_files import draw_data

from sn_imagenet.benchmark.command import compose_config, run
from sn_imagenet.benchmark.detection import detector_step


@pytest.mark.slow
def test_pytorchs_layers_give_the_same_step(tmp_path: Path) -> None:
    words = ["task=detection", "model=mask_rcnn_fpn_mini", "norm=gn", "batch.gpus=2",
             "model.args.min_size=64", "trainer.device=cpu", *draw_data(tmp_path)]  # fmt: skip
    ours = detector_step(compose_config(words))
    plain = compose_config([*words, "model.fuse_relu=false"])
    theirs = detector_step(plain, pytorch_layers=True)
    for step in (ours, theirs):
        step.run()
    expected = theirs.network.state_dict()
    for name, value in ours.network.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    assert 0.8 < ours.kept_bytes() / theirs.kept_bytes() < 1.2


@pytest.mark.slow
def test_the_report_has_ratios_memory_and_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=faster_rcnn_fpn_mini", "batch.gpus=1", "model.args.min_size=64",
             *draw_data(tmp_path)]  # fmt: skip
    report = tmp_path / "report.json"
    line = ["detection", *words, "--norm", "sn", "--evaluate", "--repeats", "1",
            "--device", "cpu", "--json", str(report)]  # fmt: skip
    run("", line)
    content = json.loads(report.read_text())
    (case,) = content["cases"]
    assert set(case["seconds"]) == {"SN", "nn.GroupNorm(32)"} == set(case["kept"])
    assert case["ratios"]["nn.GroupNorm(32)"] == 1
    assert content["evaluation"]["forward"] > 0 < content["evaluation"]["other"]
    assert "of the time is not the network's" in capsys.readouterr().out
