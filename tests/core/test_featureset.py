from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.errors import DataError
from tests.support.planted import planted_clips


def test_labels_and_scores_are_each_others_inverse() -> None:
    clips = dataclasses.replace(planted_clips(8), offset=np.arange(8.0))
    np.testing.assert_allclose(clips.label, (clips.score - np.arange(8)) / clips.difficulty)
    np.testing.assert_allclose(clips.to_score(clips.label), clips.score)


def test_predictions_of_several_heads_become_scores_at_once() -> None:
    clips = planted_clips(4)
    label = np.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(clips.to_score(label)[1], clips.to_score(label[1]))


def test_take_keeps_the_order_asked_for_in_every_column() -> None:
    clips = dataclasses.replace(
        planted_clips(6), judges=np.arange(12.0).reshape(6, 2), video=np.array([0, 0, 1, 1, 2, 2])
    )
    rows = [4, 0, 4]
    taken = clips.take(rows)
    assert len(taken) == 3
    for field in dataclasses.fields(clips):
        column = getattr(taken, field.name)
        for i, row in enumerate(rows):
            np.testing.assert_array_equal(column[i], getattr(clips, field.name)[row])
    assert len(clips.take([])) == 0


def test_columns_must_fit_together() -> None:
    clips = planted_clips(6)
    with pytest.raises(DataError, match=r"columns of different lengths: \[5, 6\]"):
        dataclasses.replace(clips, score=clips.score[:5])
    with pytest.raises(DataError, match=r"shape \(6, 6\); expected \(clips, snippets, dim\)"):
        dataclasses.replace(clips, features=clips.features[:, 0])


def test_concat_is_the_inverse_of_take() -> None:
    clips = dataclasses.replace(planted_clips(6), judges=np.arange(12.0).reshape(6, 2))
    joined = FeatureSet.concat([clips.take([0, 1]), clips.take([]), clips.take([2, 3, 4, 5])])
    for field in dataclasses.fields(clips):
        np.testing.assert_array_equal(getattr(joined, field.name), getattr(clips, field.name))
    without = dataclasses.replace(clips, judges=None, video=np.zeros(6, dtype=np.int64))
    assert FeatureSet.concat([clips, without]).judges is None
    assert FeatureSet.concat([without, without]).video is None


def test_distinct_keeps_the_first_of_each_id() -> None:
    clips = planted_clips(4)
    twice = FeatureSet.concat([clips.take([2, 0]), clips])
    assert twice.distinct().clip_id == tuple(clips.clip_id[i] for i in (2, 0, 1, 3))
    assert clips.distinct() is clips
