from __future__ import annotations

import numpy as np

from aqa_pipeline.training.validation import cross_fitted


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
