"""Ridge regression in closed form: leave-one-out by brute force, by hand, and its properties."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqa_pipeline.core.ridge import ALPHAS, Ridge, fit_ridge
from aqa_pipeline.errors import DataError

FloatArray = npt.NDArray[np.float64]


def clips(num_clips: int, num_features: int, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    random = np.random.default_rng(seed)
    features = random.normal(size=(num_clips, num_features)) * random.uniform(0.1, 9, num_features)
    targets = 20 + features[:, 0] + random.normal(size=num_clips)
    return features, targets


def by_hand(
    features: FloatArray, targets: FloatArray, weights: FloatArray, alpha: float
) -> tuple[FloatArray, float]:
    """Slope and intercept from the normal equations of standardised features."""
    scale = features.std(axis=0) * np.sqrt(features.shape[1])
    columns = np.hstack([np.ones((len(targets), 1)), (features - features.mean(axis=0)) / scale])
    penalty = np.diag([0.0] + [alpha] * features.shape[1])
    gram = columns.T @ (weights[:, None] * columns) + penalty
    solution = np.linalg.solve(gram, columns.T @ (weights * targets))
    slope = solution[1:] / scale
    return slope, float(solution[0] - slope @ features.mean(axis=0))


@pytest.mark.parametrize("shape", [(12, 30), (30, 5), (20, 20)])
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_fit_solves_the_normal_equations(
    shape: tuple[int, int], alpha: float, weighted: bool
) -> None:
    features, targets = clips(*shape)
    weights = np.random.default_rng(1).uniform(0.5, 2, shape[0]) if weighted else np.ones(shape[0])
    found = fit_ridge(features, targets, weights=weights, alphas=[alpha])
    slope, intercept = by_hand(features, targets, weights, alpha)
    np.testing.assert_allclose(found.coefficients, slope, rtol=1e-7, atol=1e-9)
    assert found.intercept == pytest.approx(intercept, rel=1e-7)
    assert found.alpha == alpha


@pytest.mark.parametrize("shape", [(12, 30), (30, 5)])
@pytest.mark.parametrize("alpha", [1e-4, 1.0, 50.0])
def test_leave_one_out_is_what_leaving_each_out_gives(shape: tuple[int, int], alpha: float) -> None:
    features, targets = clips(*shape)
    weights = np.random.default_rng(1).uniform(0.5, 2, shape[0])
    found = fit_ridge(features, targets, weights=weights, alphas=[alpha]).loo
    # The scale of the features stays that of all clips, as in the closed form.
    scale = features.std(axis=0) * np.sqrt(features.shape[1])
    standard = features / scale
    expected = np.empty(len(targets))
    for i in range(len(targets)):
        others = np.arange(len(targets)) != i
        columns = np.hstack([np.ones((len(targets) - 1, 1)), standard[others]])
        penalty = np.diag([0.0] + [alpha] * features.shape[1])
        gram = columns.T @ (weights[others, None] * columns) + penalty
        solution = np.linalg.solve(gram, columns.T @ (weights[others] * targets[others]))
        expected[i] = solution[0] + standard[i] @ solution[1:]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_pure_noise_is_not_learned_by_a_small_penalty() -> None:
    """A clipped ``1 - leverage`` prefers alpha near 0 here."""
    random = np.random.default_rng(3)
    features = random.normal(size=(60, 40))
    found = fit_ridge(features, random.normal(size=60))
    assert found.alpha > 1


def test_a_linear_signal_is_found_again() -> None:
    features, _ = clips(80, 6)
    found = fit_ridge(features, 3 + features @ np.arange(6.0))
    assert found.alpha == ALPHAS[0]
    np.testing.assert_allclose(found.coefficients, np.arange(6.0), atol=1e-2)


def test_keys_have_intercepts_of_their_own_and_unknown_ones_none() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(90, 4))
    keys = [("107B",), ("5253B",), ("405C",)] * 30
    level = {("107B",): -10.0, ("5253B",): 0.0, ("405C",): 10.0}
    targets = features[:, 0] + np.array([level[key] for key in keys])
    found = fit_ridge(features, targets, keys=keys)
    assert found.key_weight > 0
    apart = found.key_intercepts[("405C",)] - found.key_intercepts[("107B",)]
    assert apart == pytest.approx(20, abs=0.5)
    plain = found.predict(features[:2])
    np.testing.assert_array_equal(found.predict(features[:2], [("?",), ("!",)]), plain)
    own = found.predict(features, keys)
    assert np.abs(own - targets).max() < 1


def test_keys_that_say_nothing_are_left_out() -> None:
    features, targets = clips(60, 4)
    found = fit_ridge(features, targets, keys=[(float(n % 7),) for n in range(60)])
    assert found.key_weight <= 0.01


def test_a_constant_feature_carries_nothing() -> None:
    features, targets = clips(30, 5)
    features[:, 2] = 7.0
    found = fit_ridge(features, targets)
    assert found.coefficients[2] == 0
    assert np.isfinite(found.predict(features)).all()


@given(st.integers(3, 25), st.integers(1, 30), st.integers(0, 99))
def test_moving_and_scaling_features_changes_no_prediction(
    num_clips: int, num_features: int, seed: int
) -> None:
    features, targets = clips(num_clips, num_features, seed)
    found: Ridge = fit_ridge(features, targets, alphas=[1.0])
    other = fit_ridge(100 + 5 * features, targets, alphas=[1.0])
    np.testing.assert_allclose(
        other.predict(100 + 5 * features), found.predict(features), rtol=1e-6
    )
    np.testing.assert_allclose(other.loo, found.loo, rtol=1e-6)


@pytest.mark.parametrize(
    ("features", "targets", "fault"),
    [
        (np.zeros((2, 3)), np.zeros(2), "2 clips are too few"),
        (np.full((5, 3), np.nan), np.zeros(5), "needs finite features"),
        (np.zeros((5, 3)), np.array([0, 1, np.inf, 2, 3]), "needs finite features"),
    ],
)
def test_what_cannot_be_fitted_is_said(
    features: FloatArray, targets: FloatArray, fault: str
) -> None:
    with pytest.raises(DataError, match=fault):
        fit_ridge(features, targets)
