from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqa_pipeline.errors import UsageError
from aqa_pipeline.runs.conformal import (
    check_coverage,
    conformal_quantile,
    coverage_spread,
    difference_errors,
    fewest_residuals,
    residuals_for_own_group,
)


def test_the_quantile_of_a_hand_sorted_list() -> None:
    # 19 residuals: ceil(20 x 0.9) = 18, the second largest.
    assert conformal_quantile(np.arange(19.0), 0.9) == 17.0
    assert conformal_quantile([3.0, 1.0, 2.0], 0.75) == 3.0
    # 75 x 0.68 is 51, though not in floating point.
    assert conformal_quantile(np.arange(1.0, 75.0), 0.68) == 51.0
    assert conformal_quantile([3.0, 1.0, 2.0], 0.5) == 2.0


def test_too_few_residuals_make_an_interval_infinite() -> None:
    assert fewest_residuals(0.9) == 9
    assert math.isfinite(conformal_quantile(np.ones(9), 0.9))
    assert conformal_quantile(np.ones(8), 0.9) == math.inf
    assert conformal_quantile([], 0.5) == math.inf


@given(st.floats(0.05, 0.99), st.integers(0, 300))
def test_an_interval_is_finite_exactly_from_the_fewest_residuals_on(c: float, n: int) -> None:
    assert math.isfinite(conformal_quantile(np.ones(n), c)) == (n >= fewest_residuals(c))


def test_a_group_needs_five_residuals_beyond_its_interval() -> None:
    assert residuals_for_own_group(0.9) == 50
    assert residuals_for_own_group(0.5) == 10


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0, 90.0])
def test_a_coverage_lies_between_0_and_1(coverage: float) -> None:
    with pytest.raises(UsageError, match=r"such as 0\.9"):
        check_coverage(coverage)


def heavy_tailed(rng: np.random.Generator, size: tuple[int, ...]) -> npt.NDArray[np.float64]:
    return np.abs(rng.standard_t(2, size))


@pytest.mark.parametrize("num_residuals", [9, 40, 132, 1000])
def test_on_synthetic_residuals_the_promise_is_kept_within_one_in_a_hundred(
    num_residuals: int,
) -> None:
    """Mean coverage over many draws of n calibrating and one new residual, 90 asked."""
    rng = np.random.default_rng(num_residuals)
    draws = heavy_tailed(rng, (20_000, num_residuals + 1))
    half = np.array([conformal_quantile(row[:-1], 0.9) for row in draws])
    reached = float(np.mean(draws[:, -1] <= half))
    rank = math.ceil((num_residuals + 1) * 0.9 - 1e-9)
    assert abs(reached - rank / (num_residuals + 1)) < 0.007
    assert reached > 0.89
    if num_residuals >= 40:
        assert reached < 0.91


def test_the_spread_of_coverage_is_that_of_a_simulation() -> None:
    rng = np.random.default_rng(0)
    residuals, new = heavy_tailed(rng, (4000, 50)), heavy_tailed(rng, (4000, 64))
    half = np.array([conformal_quantile(row, 0.9) for row in residuals])
    reached = (new <= half[:, None]).mean(axis=1)
    mean, low, high = coverage_spread(num_residuals=50, num_clips=64, coverage=0.9)
    assert mean == pytest.approx(46 / 51)
    assert abs(reached.mean() - mean) < 0.005
    assert 0.94 < np.mean((reached >= low) & (reached <= high)) < 0.99


def test_without_an_interval_everything_is_inside() -> None:
    assert coverage_spread(num_residuals=3, num_clips=10, coverage=0.9) == (1.0, 1.0, 1.0)


def test_errors_of_differences_of_three_clips_by_hand() -> None:
    errors = difference_errors([1.0, 2.0, 4.0], scale_a=2.0, scale_b=1.0)
    # 2a - b over ordered pairs: 2-2, 2-4, 4-1, 4-4, 8-1, 8-2.
    assert errors.tolist() == [0.0, -2.0, 3.0, 0.0, 7.0, 6.0]
