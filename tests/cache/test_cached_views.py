"""Views of the training clips out of a cache, and heads that learn from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from aqa_cli.main import cli
from click.testing import CliRunner

from aqa_pipeline.cache.fingerprint import fingerprint_of
from aqa_pipeline.cache.load import load_views
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.cache.writer import SegmentWriter
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.errors import CacheError
from tests.training.test_fit import PROTOCOL, cached_clip, make_cache

pytestmark = pytest.mark.usefixtures("one_thread")


def add_views(cache: FeatureCache, clips: Sequence[int], names: tuple[str, ...]) -> FeatureCache:
    """Views in which every number is 100 times the clip plus the view's place."""
    with SegmentWriter(cache.folder, fingerprint_of(PROTOCOL, weights_sha256="00" * 32)) as writer:
        for clip in clips:
            numbers = 100.0 * clip + 1 + np.arange(len(names))
            features = np.broadcast_to(numbers[:, None, None], (len(names), 2, 8))
            writer.add(cached_clip(clip, features.astype(np.float32), names))
    return FeatureCache.open(cache.folder)


def training_clips(manifest: Manifest) -> list[str]:
    clips = manifest.clips
    return clips.loc[clips["split"] == "train", "clip_id"].tolist()


@pytest.mark.parametrize("averaged", [False, True])
def test_views_come_in_order_the_plain_one_first(tmp_path: Path, averaged: bool) -> None:
    manifest, cache = make_cache(tmp_path)
    cache = add_views(cache, range(60), ("flip", "shift+1"))
    views = load_views(manifest, cache, ["c07", "c03"], averaged=averaged)
    assert views.shape == (2, 3, 1 if averaged else 2, 8)
    assert np.abs(views[:, 0]).max() < 10, "the plain features are small"
    assert views[:, 1:, 0, 0].tolist() == [[701, 702], [301, 302]]


def test_a_view_that_some_training_clip_lacks_is_left_out(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)
    add_views(cache, range(60), ("flip",))
    cache = add_views(cache, range(30), ("shift+1",))
    assert load_views(manifest, cache, ["c07", "c03"], averaged=True).shape[1] == 3
    assert load_views(manifest, cache, ["c07", "c33"], averaged=True).shape[1] == 2


def test_without_views_or_clips_it_says_what_to_type(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)
    with pytest.raises(CacheError, match="aqa extract --dataset made-up --views flip"):
        load_views(manifest, cache, training_clips(manifest), averaged=False)
    with pytest.raises(CacheError, match="c99"):
        load_views(manifest, cache, ["c01", "c99"], averaged=False)


def test_the_command_trains_on_views_and_the_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cache = make_cache(tmp_path)
    add_views(cache, range(60), ("flip",))
    (tmp_path / "aqa.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    arguments = ["fit-head", "--dataset", "made-up", "--epochs", "3", "--hidden", "16"]
    scores = []
    for run, more in (("plain", []), ("viewed", ["--views"])):
        done = CliRunner().invoke(cli, [*arguments, "--run", run, *more])
        assert done.exit_code == 0, done.output
        folder = tmp_path / "runs" / run
        config = json.loads((folder / "config.json").read_text())
        assert config["fit"]["views"] is bool(more)
        scores.append((folder / "predictions.csv").read_text())
    assert scores[0] != scores[1]
