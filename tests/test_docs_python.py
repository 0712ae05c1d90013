"""The code of docs/python.md runs, from the manifest to the score."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from aqa_pipeline.backbone.weights import WEIGHTS_NAME, WeightsInfo, weights_sha256, write_weights
from aqa_pipeline.datasets.protocol import write_protocol
from tests.support.places import ROOT
from tests.support.random_i3d import random_i3d
from tests.support.small_project import PROTOCOL, make_project
from tests.support.videos import write_video

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny data set under the demo's names, and weights that nobody trained."""
    small = make_project(tmp_path, clips_per_video=12)
    clips = pd.read_csv(small.path)
    clips.loc[0, "clip_id"] = "broadcast_01_dive_02"
    clips["difficulty"] = clips["difficulty"].replace(2.5, 2.4)
    clips.to_csv(tmp_path / "manifests" / "demo.csv", index=False)
    small.path.unlink()
    small.path.with_suffix(".toml").unlink()
    write_protocol(tmp_path / "manifests" / "demo.toml", dataclasses.replace(PROTOCOL, name="demo"))
    video = tmp_path / "manifests" / "demo" / "broadcast_01.mp4"
    video.parent.mkdir()
    write_video(video, 900, size=(160, 128))
    weights = tmp_path / "home" / "weights" / WEIGHTS_NAME
    weights.parent.mkdir(parents=True)
    state = random_i3d(unit_scale=True).state_dict()
    write_weights(
        state, weights, WeightsInfo(weights, "aqa", weights_sha256(state), 0, 0, source="drawn")
    )
    monkeypatch.setenv("AQA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("demo", "one_thread")
def test_the_code_of_the_page_runs() -> None:
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(code, "docs/python.md", "exec"), names)
    assert repr(names["manifest"]) == "Manifest(manifests/demo.csv: 24 clips, 20 train, 4 test)"
    assert names["cache"]["broadcast_01_dive_02"].shape == (1, 1024)
    assert names["aqa"].evaluate_run(names["run"], names["manifest"]) == names["metrics"]
    assert len(names["predictions"]) == len(names["test"]) == 4
    assert names["predicted"].shape == (4,)
    assert isinstance(names["loss"], torch.Tensor)
    assert names["scored"].score == names["explanation"].scored.score
    assert repr(names["scored"]).startswith("ScoredClip(manifests/demo/broadcast_01.mp4: ")
