"""``aqa explain`` on the real network: half a minute of it, so not in the default suite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.cli.test_main import aqa, expect
from tests.support.random_i3d import random_i3d
from tests.support.small_project import make_project

pytestmark = pytest.mark.torture


def test_on_the_real_network_it_explains_what_predict_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the files on the disk to both heat-maps, with drawn weights."""
    pytest.importorskip("captum")
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, clips_per_video=6)
    save_file(random_i3d().state_dict(), tmp_path / "w.safetensors")
    weights = ("--weights", "w.safetensors")
    assert aqa("extract", "--dataset", "small", *weights).exit_code == 0
    fit = aqa("fit-head", "--dataset", "small", "--epochs", "1", "--hidden", "8", "--seeds", "2")
    assert fit.exit_code == 0, fit.output
    clip = ("small", "videos/v1.mp4", "--end", "37", "--difficulty", "2.5", *weights, "--json")
    predicted = json.loads(aqa("predict", *clip).stdout)["clips"][0]
    for layer in ("mixed_5c", "mixed_4f"):
        result = aqa("explain", *clip, "--layer", layer, "--out", layer)
        assert result.exit_code == 0, result.output
        said = json.loads(result.stdout)
        assert said["score"] == predicted["score"]
        assert said["interval"] == predicted["interval"]
        assert f"Grad-CAM on {layer}" in (tmp_path / layer / "explain.html").read_text()
    (tmp_path / "other.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    expect(aqa("explain", "small", "videos/v1.mp4", "--weights", "other.safetensors"), 6, "other")
