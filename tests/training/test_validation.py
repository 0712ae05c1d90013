from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqa_pipeline.config import FitConfig
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.errors import DataError
from aqa_pipeline.training.validation import (
    cross_fitted,
    hold_out,
    validation_rows,
    validation_unit,
)
from tests.support.planted import planted_clips


@given(
    scores=st.lists(st.integers(0, 30), min_size=12, max_size=80),
    fraction=st.floats(0.2, 0.5),
    seed=st.integers(0, 99),
)
def test_the_validation_part_takes_one_clip_of_each_run_of_scores(
    scores: list[int], fraction: float, seed: int
) -> None:
    rows = validation_rows(scores, fraction=fraction, seed=seed)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == round(fraction * len(scores))
    runs = np.array_split(np.sort(scores), len(rows))
    for score, run in zip(np.sort(np.array(scores)[rows]), runs, strict=True):
        assert run[0] <= score <= run[-1]


def test_the_validation_part_depends_on_the_seed_only() -> None:
    scores = np.random.default_rng(0).normal(size=100)
    parts = [validation_rows(scores, fraction=0.2, seed=seed).tolist() for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


def test_equal_scores_are_not_held_out_in_file_order() -> None:
    taken = [validation_rows(np.ones(40), fraction=0.1, seed=seed) for seed in range(60)]
    assert np.ptp([rows[0] for rows in taken]) > 10, "the first of 4 lies in the first 10 else"
    assert len(set(np.concatenate(taken).tolist())) > 36


@pytest.mark.parametrize(("count", "fraction"), [(5, 0.2), (5, 0.8), (0, 0.2), (20, 0.0)])
def test_too_few_clips_for_a_validation_part(count: int, fraction: float) -> None:
    with pytest.raises(DataError, match=f"{count} training clips are too few to hold out"):
        validation_rows(np.arange(count), fraction=fraction, seed=0)


def in_videos(*sizes: int) -> FeatureSet:
    clips = planted_clips(sum(sizes))
    return dataclasses.replace(clips, video=np.repeat(np.arange(len(sizes)), sizes))


def test_whole_videos_are_held_out_and_no_model_learns_from_a_piece_of_one() -> None:
    clips = in_videos(6, 9, 7, 8, 11, 9)
    assert clips.video is not None
    config = FitConfig(num_seeds=6)
    division = hold_out(clips, config, None)
    assert validation_unit(clips, config) == "whole videos"
    for fit, held_out in zip(division.fit, division.held_out, strict=True):
        assert not set(clips.video[fit]) & set(clips.video[held_out])
    # Models are trained side by side, so their parts are of one size: of the smallest.
    assert {len(rows) for rows in division.held_out} <= {6, 7, 8, 9, 11}
    assert len({tuple(rows) for rows in division.held_out}) > 1
    assert [len(judged) for judged in division.validation] == [division.held_out.shape[1]] * 6


def test_of_two_long_videos_neither_is_held_out_whole(caplog: pytest.LogCaptureFixture) -> None:
    clips = in_videos(20, 20)
    with caplog.at_level(logging.WARNING):
        division = hold_out(clips, FitConfig(), None)
    assert "of single clips, though the test split is of other videos" in caplog.text
    assert validation_unit(clips, FitConfig()) == "single clips"
    np.testing.assert_array_equal(
        division.held_out[0], validation_rows(clips.score, fraction=0.2, seed=0)
    )


def test_test_set_model_selection_holds_nothing_out() -> None:
    clips, test = in_videos(5, 5, 5), planted_clips(4, seed=1)
    division = hold_out(clips, FitConfig(), test)
    assert division.fit.tolist() == [list(range(15))]
    assert division.held_out.shape == (1, 0)
    assert division.validation == [test]


def test_each_clip_is_predicted_at_the_epoch_that_the_others_choose() -> None:
    truth = np.arange(6.0)
    # Epoch 0 is right but for clip 5; epoch 1 is wrong but for clip 5 being the highest.
    epochs = np.array([[[0, 1, 2, 3, 4, -9.0]], [[2, 1, 3, 0, 4, 9.0]]])
    chosen = cross_fitted(epochs, truth[None], seeds=[0])[0]
    # Without clip 5, epoch 0 is perfect: clip 5 is predicted by it, badly.
    assert chosen[5] == -9.0
    # All six would choose epoch 1, so whoever chooses for clip 0 does too.
    assert chosen[0] == 2.0


def test_a_prediction_does_not_depend_on_the_clips_own_score() -> None:
    rng = np.random.default_rng(0)
    truth, epochs = rng.normal(size=(2, 15)), rng.normal(size=(8, 2, 15))
    before = cross_fitted(epochs, truth, seeds=[3, 4])
    for clip in (0, 7):
        other = truth.copy()
        other[:, clip] = 1e6  # fewer than 20 clips: each is left out alone
        after = cross_fitted(epochs, other, seeds=[3, 4])
        np.testing.assert_array_equal(after[:, clip], before[:, clip])
        assert not np.array_equal(after, before)


def test_models_choose_apart_and_many_clips_are_left_out_in_folds() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(2, 90))
    noise = rng.normal(size=(3, 2, 90))
    epochs = truth + noise * np.array([[0.1, 9.0], [9.0, 0.1], [9.0, 9.0]])[:, :, None]
    chosen = cross_fitted(epochs, truth, seeds=[0, 1])
    np.testing.assert_array_equal(chosen[0], epochs[0, 0])
    np.testing.assert_array_equal(chosen[1], epochs[1, 1])


def test_an_epoch_of_equal_predictions_is_never_chosen() -> None:
    truth = np.arange(6.0)
    backwards = -truth  # the worst there is, but a correlation
    for epochs in ([np.full(6, 2.0), backwards], [backwards, np.full(6, 2.0)]):
        chosen = cross_fitted(np.array(epochs)[:, None], truth[None], seeds=[0])
        np.testing.assert_array_equal(chosen[0], backwards)


def test_nothing_held_out_and_too_little_to_choose_by() -> None:
    assert cross_fitted(np.zeros((4, 2, 0)), np.zeros((2, 0)), seeds=[0, 1]).shape == (2, 0)
    assert np.isnan(cross_fitted(np.ones((4, 1, 2)), np.ones((1, 2)), seeds=[0])).all()
