from __future__ import annotations

import numpy as np
import pytest

from aqa_pipeline.scoring.similarity import SAME, OutlierDetector


def test_a_training_clip_is_at_no_distance_and_is_named() -> None:
    features = np.random.default_rng(0).normal(size=(40, 3, 16))
    outliers = OutlierDetector(features)
    distance, place = outliers.nearest(features[7])
    assert place == 7
    assert distance < 1e-4


def test_about_one_in_a_hundred_clips_like_the_training_clips_is_beyond_the_limit() -> None:
    clips = np.random.default_rng(1).normal(size=(3000, 1, 12))
    outliers = OutlierDetector(clips[:1000])
    beyond = np.mean([outliers.nearest(clip)[0] > outliers.limit for clip in clips[1000:]])
    assert 0.003 < beyond < 0.025


def test_another_scene_is_far_whatever_the_scale_of_the_features() -> None:
    clips = np.random.default_rng(2).normal(size=(101, 2, 12)) * np.logspace(-3, 3, 12)
    outliers = OutlierDetector(clips[:100])
    assert outliers.nearest(clips[100] + 5 * np.logspace(-3, 3, 12))[0] > 2 * outliers.limit


def test_distances_of_two_clips_by_hand() -> None:
    outliers = OutlierDetector(np.array([[[0.0, 1.0]], [[2.0, 1.0]]]))
    # The first dimension has mean 1 and spread 1, the second is constant.
    assert outliers.limit == pytest.approx(2 / np.sqrt(2))
    distance, place = outliers.nearest(np.array([[3.0, 1.0]]))
    assert distance == pytest.approx(1 / np.sqrt(2))
    assert place == 1


def test_one_training_clip_makes_nothing_unusual() -> None:
    assert OutlierDetector(np.zeros((1, 2, 3))).limit == float("inf")


def test_many_clips_are_thinned_out_and_still_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aqa_pipeline.scoring.similarity._MOST_CLIPS", 10)
    features = np.random.default_rng(0).normal(size=(25, 1, 8))
    distance, place = OutlierDetector(features).nearest(features[6])
    assert distance < 1e-4
    assert place == 6


def test_rounded_features_are_the_clip_within_a_quarter_of_the_smallest_distance() -> None:
    clips = np.array([0.0, 1.0, 5.0, 5.0])[:, None, None]  # the last two are one clip, listed twice
    exact, rounded = OutlierDetector(clips), OutlierDetector(clips, is_exact=False)
    assert exact.same == SAME
    assert rounded.same == pytest.approx(0.25 / clips.std())
    assert OutlierDetector(clips[:1], is_exact=False).same == SAME
    assert OutlierDetector(clips[2:], is_exact=False).same == SAME
