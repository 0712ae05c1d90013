"""Cached features as a torch data set, and the loader's defaults, on the kept project of 0.1.0."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from aqa_pipeline.cache.clip_dataset import CachedFeatures
from aqa_pipeline.cache.load import load_split, open_cache
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.datasets.manifest import as_manifest, read_manifest
from aqa_pipeline.datasets.parts import Part
from aqa_pipeline.errors import CacheError, DataError, UsageError
from aqa_pipeline.runs.evaluate import evaluate_run
from aqa_pipeline.runs.folder import read_run
from aqa_pipeline.runs.metrics import Metrics
from aqa_pipeline.training.fit import fit_dataset
from tests.support.places import DATA

MANIFEST = "manifests/dives.csv"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, in which the test is."""
    shutil.copytree(DATA / "v0.1.0", tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_items_are_features_and_score() -> None:
    cache = open_cache(MANIFEST)
    clips = CachedFeatures(MANIFEST, cache, split="test")
    rows = read_manifest(MANIFEST).clips.query("split == 'test'")
    assert clips.clip_id == tuple(rows["clip_id"])
    assert len(clips) == len(rows)
    features, score = clips[1]
    np.testing.assert_array_equal(features.numpy(), cache[clips.clip_id[1]])
    assert (features.dtype, score.dtype) == (torch.float32, torch.float32)
    assert float(score) == pytest.approx(rows["score"].iloc[1])
    assert repr(clips) == f"CachedFeatures({len(rows)} clips, 3 snippets x 5)"
    batch, scores = next(iter(DataLoader(clips, batch_size=2)))
    assert (batch.shape, scores.shape) == ((2, 3, 5), (2,))


def test_without_a_split_all_clips_come() -> None:
    cache = str(open_cache(MANIFEST).folder)
    assert len(CachedFeatures(MANIFEST, cache)) == 24
    with pytest.raises(UsageError, match="split 'validation' is neither train nor test"):
        CachedFeatures(MANIFEST, cache, split="validation")  # type: ignore[arg-type]


def test_a_side_without_clips_or_features_is_an_error() -> None:
    cache, manifest = open_cache(MANIFEST), read_manifest(MANIFEST)
    manifest.clips.loc[0, "clip_id"] = "new"
    with pytest.raises(CacheError, match=r"features of 1 of 24 clips are missing \('new'\)"):
        CachedFeatures(manifest, cache)
    train = manifest.clips[manifest.clips["split"] == "train"]
    with pytest.raises(DataError, match="no clip is on the side 'test' of the split"):
        CachedFeatures(dataclasses.replace(manifest, clips=train), cache, split="test")


def test_the_loader_takes_paths_and_finds_the_only_part() -> None:
    cache = open_cache(MANIFEST)
    split = load_split(MANIFEST, str(cache.folder))
    assert len(split.train) + len(split.test) == 24
    assert repr(split.train) == f"FeatureSet({len(split.train)} clips, 3 snippets x 5)"
    again = load_split(read_manifest(MANIFEST), cache, Part())
    np.testing.assert_array_equal(again.train.features, split.train.features)


def test_of_several_parts_one_must_be_named() -> None:
    manifest = read_manifest(MANIFEST)
    clips = manifest.clips.assign(category=["a", "b"] * 12)
    protocol = dataclasses.replace(manifest.protocol, per_category=True)
    manifest = dataclasses.replace(manifest, clips=clips, protocol=protocol)
    with pytest.raises(UsageError, match="the data set has 2 parts, one per category and fold"):
        load_split(manifest, open_cache(manifest))
    assert set(load_split(manifest, open_cache(manifest), Part("a")).train.category) == {"a"}


def test_a_manifest_says_its_sides_in_one_line() -> None:
    manifest = read_manifest(MANIFEST)
    sides = manifest.clips["split"].value_counts()
    said = f"{sides['train']} train, {sides['test']} test"
    assert repr(manifest) == f"Manifest({MANIFEST}: 24 clips, {said})"
    folds = dataclasses.replace(manifest.protocol, fold_columns=("split", "fold_2"))
    assert repr(dataclasses.replace(manifest, protocol=folds)).endswith("24 clips, 2 folds)")
    assert as_manifest(manifest) is manifest


@pytest.mark.usefixtures("one_thread")
def test_defaults_and_strings_are_enough_to_fit_and_evaluate() -> None:
    cache = open_cache(MANIFEST)
    metrics = fit_dataset(MANIFEST, str(cache.folder), "runs/new", device="cpu")
    run = read_run("runs/new", device="cpu")
    assert isinstance(metrics, Metrics)
    assert run.metrics() == metrics == evaluate_run("runs/new") == evaluate_run(run, MANIFEST)
    assert repr(run) == (
        f"Run(runs/new: CoRe + GART, 1 head, {metrics.num_train} training clips, on cpu)"
    )
    predictions = run.predictions()
    assert len(predictions) == metrics.num_test
    assert {"clip_id", "score", "prediction", "prediction_seed0"} <= set(predictions)


def test_a_kept_run_is_evaluated_without_naming_its_data_set(project: Path) -> None:
    run = read_run(project / "runs" / "gart")
    again, kept = evaluate_run("runs/gart").to_frame(), run.metrics().to_frame()
    assert again.loc["rho", "mean"] == pytest.approx(kept.loc["rho", "mean"])
    (run.folder / "metrics.json").unlink()
    (run.folder / "predictions.csv").unlink()
    for ask in (run.metrics, run.predictions):
        with pytest.raises(DataError, match="of this run; its fit did not end"):
            ask()
    with pytest.raises(CacheError):
        FeatureCache.open("cache/dives/none")
