"""A cache and runs of aqa 0.1.0 (tests/data/make_v0_1_0.py) are read, and score the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from aqa_cli.main import cli
from click.testing import CliRunner

from aqa_pipeline.cache.load import feature_set, find_cache, load_features
from aqa_pipeline.cache.verify import cache_info
from aqa_pipeline.datasets.manifest import read_manifest
from aqa_pipeline.runs.evaluate import predict_clips, write_predictions
from aqa_pipeline.runs.folder import read_run
from tests.support.places import DATA

RUNS = ("gart", "literature")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy: nothing is ever written beside the kept files."""
    shutil.copytree(DATA / "v0.1.0", tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_the_cache_is_read_to_the_last_number(project: Path) -> None:
    manifest = read_manifest(project / "manifests" / "dives.csv")
    cache = find_cache(project / "cache" / "dives", manifest.protocol)
    features = load_features(manifest, cache, manifest.clips["clip_id"].tolist())
    assert features.shape == (24, 3, 5)
    # As planted: the first number tells the mean mark, the score over three times the difficulty.
    marks = manifest.clips["score"] / manifest.clips["difficulty"] / 3
    np.testing.assert_allclose(features[:, :, 0], np.stack([marks - 6] * 3, axis=1), atol=0.002)
    assert cache_info(cache.folder).damaged == []


@pytest.mark.parametrize("name", RUNS)
def test_a_run_scores_as_its_predictions_say(project: Path, name: str) -> None:
    run = read_run(project / "runs" / name, device=torch.device("cpu"))
    manifest = read_manifest(project / "manifests" / "dives.csv")
    cache = find_cache(project / "cache" / "dives", run.protocol)
    rows = manifest.clips[manifest.clips["split"] == "test"]
    features = load_features(manifest, cache, rows["clip_id"].tolist())
    predictions = predict_clips(run, feature_set(rows, features, manifest, run.labels))
    kept = pd.read_csv(run.folder / "predictions.csv", keep_default_na=False)
    (run.folder / "predictions.csv").unlink()
    write_predictions(run, predictions)
    table = pd.read_csv(run.folder / "predictions.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(table, kept, rtol=1e-5, check_dtype=False)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_evaluates_to_its_metrics(project: Path, name: str) -> None:
    result = CliRunner().invoke(cli, ["evaluate", name, "--json", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    measured = flat(json.loads(result.stdout))
    kept = flat(json.loads((project / "runs" / name / "metrics.json").read_text(encoding="utf-8")))
    assert measured.keys() >= kept.keys()
    for key, value in kept.items():
        expected = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
        assert measured[key] == expected, key


def test_a_run_of_two_heads_keeps_what_it_held_out(project: Path) -> None:
    run = read_run(project / "runs" / "gart", device=torch.device("cpu"))
    assert run.calibration is not None
    assert run.seeds == [0, 1]
    assert len(run.exemplars) == 18


def flat(value: object, name: str = "") -> dict[str, object]:
    """Every number and text of nested JSON by its path."""
    if isinstance(value, dict):
        pairs = [flat(own, f"{name}/{key}") for key, own in value.items()]
    elif isinstance(value, list):
        pairs = [flat(own, f"{name}/{number}") for number, own in enumerate(value)]
    else:
        return {name: value}
    return {key: own for pair in pairs for key, own in pair.items()}
