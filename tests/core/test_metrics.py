from __future__ import annotations

import itertools
import logging
import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from aqa_pipeline.core.metrics import (
    bootstrap_interval,
    class_ranges,
    fisher_mean,
    kendall_tau,
    l2,
    relative_l2,
    spearman,
)
from aqa_pipeline.errors import DataError

NAN = float("nan")

#: Table 1 of the paper, Spearman's rho: the six classes and the printed average.
TABLE_1 = {
    "ST-GCN": ([0.3286, 0.5770, 0.1681, 0.1234, 0.6600, 0.6483], 0.4433),
    "C3D-LSTM": ([0.6047, 0.5636, 0.4593, 0.5029, 0.7912, 0.6927], 0.6165),
    "C3D-SVR": ([0.7902, 0.6824, 0.5209, 0.4006, 0.5937, 0.9120], 0.6937),
    "JRG": ([0.7630, 0.7358, 0.6006, 0.5405, 0.9013, 0.9254], 0.7849),
    "I3D+MLP*": ([0.7438, 0.7342, 0.5190, 0.5103, 0.8915, 0.8703], 0.7472),
    "USDL": ([0.8099, 0.7570, 0.6538, 0.7109, 0.9166, 0.8878], 0.8102),
    "I3D+MLP*, theirs": ([0.8685, 0.6939, 0.5391, 0.5180, 0.8782, 0.8486], 0.7601),
}
#: The one row whose printed average, .8401, is not the Fisher mean of its classes.
CORE_GART = [0.8824, 0.7746, 0.7115, 0.6624, 0.9442, 0.9078]

#: Scores with many ties: a rank correlation must give tied clips their mean rank.
tied_columns = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=30
).map(lambda rows: np.array(rows, dtype=float).T)


def test_eq10_by_hand() -> None:
    # ranks 1 2 3 4 and 1 3 2 4: 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15)
    assert spearman([10, 20, 30, 40], [1.0, 5.0, 4.0, 9.0]) == pytest.approx(0.8)


@given(tied_columns)
def test_eq10_equals_scipy_with_ties(columns: npt.NDArray[np.float64]) -> None:
    scores, predictions = columns
    assume(np.ptp(scores) > 0 and np.ptp(predictions) > 0)
    expected = stats.spearmanr(scores, predictions).statistic
    assert spearman(scores, predictions) == pytest.approx(expected, abs=1e-12)
    assert kendall_tau(scores, predictions) == stats.kendalltau(scores, predictions).statistic


@given(tied_columns)
def test_eq10_looks_at_ranks_only(columns: npt.NDArray[np.float64]) -> None:
    scores, predictions = columns
    assume(np.ptp(scores) > 0 and np.ptp(predictions) > 0)
    rho = spearman(scores, predictions)
    assert -1 <= rho <= 1
    assert spearman(scores, np.exp(predictions)) == rho
    assert spearman(scores, -predictions) == pytest.approx(-rho, abs=1e-12)
    assert spearman(scores, scores) == 1


def test_eq11_by_hand() -> None:
    # errors 1, 2, 0 over a range of 10: (0.01 + 0.04 + 0) / 3
    assert relative_l2([0, 10, 4], [1, 8, 4]) == pytest.approx(0.05 / 3)
    assert relative_l2([0, 10, 4], [1, 8, 4], score_range=20) == pytest.approx(0.0125 / 3)


def test_eq11_by_the_range_of_each_clip_s_class() -> None:
    known = {"all_scores": [0, 10, 4, 100, 300], "all_categories": ["dive"] * 3 + ["vault"] * 2}
    spans = class_ranges(["vault", "dive", "vault"], **known)  # type: ignore[arg-type]
    assert spans.tolist() == [200, 10, 200]
    # errors 20 of 200, 1 of 10, 0: (0.01 + 0.01 + 0) / 3
    assert relative_l2([100, 3, 250], [120, 4, 250], score_range=spans) == pytest.approx(0.02 / 3)
    unknown = class_ranges(["suture"], **known)  # type: ignore[arg-type]
    assert math.isnan(relative_l2([3], [3], score_range=unknown))


def test_the_bootstrap_of_a_given_range_resamples_errors_alone() -> None:
    scores, predictions = np.arange(40.0), np.arange(40.0) + 2
    low, high = bootstrap_interval(scores, predictions, metric="relative_l2", score_range=20)
    assert low == pytest.approx(0.01)
    assert high == pytest.approx(0.01)
    assert bootstrap_interval(scores, predictions, metric="relative_l2")[1] > 0.0026


@given(tied_columns, st.floats(0.1, 10), st.floats(-50, 50))
def test_eq11_does_not_depend_on_the_unit(
    columns: npt.NDArray[np.float64], scale: float, offset: float
) -> None:
    scores, predictions = columns
    assume(np.ptp(scores) > 0)
    moved = relative_l2(offset + scale * scores, offset + scale * predictions)
    assert moved == pytest.approx(relative_l2(scores, predictions), rel=1e-6, abs=1e-12)
    assert moved == pytest.approx(l2(scores, predictions) / np.ptp(scores) ** 2, rel=1e-6)


def test_mean_squared_error_by_hand() -> None:
    assert l2([1, 2, 3], [1, 4, 0]) == pytest.approx(13 / 3)


@pytest.mark.parametrize("method", TABLE_1)
def test_fisher_means_of_table_1(method: str) -> None:
    rhos, printed = TABLE_1[method]
    assert fisher_mean(rhos) == pytest.approx(printed, abs=1.5e-4)


def test_fisher_mean_of_the_row_that_table_1_misprints() -> None:
    assert fisher_mean(CORE_GART) == pytest.approx(0.8433, abs=5e-5)
    assert np.mean(CORE_GART) != pytest.approx(0.8401, abs=1e-3), "nor is it the plain mean"


def test_fisher_mean_of_perfect_and_missing_correlations(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert fisher_mean([0.5]) == pytest.approx(0.5)
    assert fisher_mean([1.0, 1.0]) == pytest.approx(1.0)
    assert fisher_mean([1.0, -1.0]) == pytest.approx(0.0)
    assert 0.9 < fisher_mean([1.0, 0.5]) < 1
    assert not caplog.records
    assert fisher_mean([NAN, 0.4]) == pytest.approx(0.4)
    assert math.isnan(fisher_mean([NAN]))
    assert "1 of 2 correlations are not defined" in caplog.text


@pytest.mark.parametrize(
    ("scores", "predictions", "why"),
    [
        pytest.param([1, 2, 3], [5, 5, 5], "all 3 predictions are equal", id="constant head"),
        pytest.param([4, 4], [1, 2], "all 2 scores are equal", id="constant judges"),
        pytest.param([1, 2], [1, NAN], "1 of 2 predictions are not a number", id="diverged head"),
        pytest.param([NAN, 2], [1, 2], "1 of 2 scores are not a number", id="no score"),
        pytest.param([1], [1], "for 1 clip(s)", id="one clip"),
    ],
)
def test_an_undefined_correlation_is_nan_and_says_why(
    scores: list[float], predictions: list[float], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    for metric, name in ((spearman, "Spearman's rho"), (kendall_tau, "Kendall's tau")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert math.isnan(metric(scores, predictions))
        assert name in caplog.text
        assert why in caplog.text


def test_distances_without_range_or_clips_are_nan_and_say_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert math.isnan(relative_l2([3, 3], [1, 2]))
    assert "no range (lowest 3, highest 3)" in caplog.text
    assert math.isnan(relative_l2([], []))
    assert math.isnan(l2([], []))
    assert "not defined for 0 clips" in caplog.text


def test_columns_must_be_of_one_length() -> None:
    for metric in (spearman, kendall_tau, relative_l2, l2, bootstrap_interval):
        with pytest.raises(DataError, match=r"scores \(3,\) and predictions \(2,\) must be two"):
            metric([1, 2, 3], [1, 2])


def drawn(num_clips: int, noise: float, seed: int) -> tuple[npt.NDArray[np.float64], ...]:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=num_clips)
    return scores, scores + noise * rng.normal(size=num_clips)


@pytest.mark.parametrize("metric", ["rho", "relative_l2"])
def test_the_bootstrap_equals_a_loop(metric: Literal["rho", "relative_l2"]) -> None:
    function = {"rho": spearman, "relative_l2": relative_l2}[metric]
    scores, predictions = drawn(25, 0.7, seed=3)
    rows = np.random.default_rng(5).integers(0, 25, size=(80, 25))
    values = [function(scores[r], predictions[r]) for r in rows]
    found = bootstrap_interval(
        scores, predictions, metric=metric, num_resamples=80, seed=5, coverage=0.8
    )
    assert found == pytest.approx(tuple(np.quantile(values, [0.1, 0.9])))


def test_the_bootstrap_of_several_heads_is_of_their_mean() -> None:
    scores, first = drawn(25, 0.7, seed=3)
    second = drawn(25, 0.7, seed=3)[1] + np.random.default_rng(9).normal(size=25)
    rows = np.random.default_rng(0).integers(0, 25, size=(60, 25))
    values = [np.mean([spearman(scores[r], p[r]) for p in (first, second)]) for r in rows]
    found = bootstrap_interval(scores, np.stack([first, second]), num_resamples=60)
    assert found == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_the_bootstrap_covers_the_true_correlation_about_as_often_as_it_says() -> None:
    # Two normal variables of correlation r have rho = 6 / pi * asin(r / 2).
    noise = 1.0
    true_rho = 6 / math.pi * math.asin(1 / math.sqrt(1 + noise**2) / 2)
    hits = 0
    for seed in range(100):
        low, high = bootstrap_interval(*drawn(50, noise, seed), num_resamples=150)
        hits += low <= true_rho <= high
    assert 85 <= hits <= 99


def test_the_bootstrap_interval_shrinks_with_clips_and_grows_with_coverage() -> None:
    few, many = (
        np.diff(bootstrap_interval(*drawn(n, 1.0, 1), num_resamples=300)) for n in (30, 480)
    )
    assert many < few / 2
    limits = [bootstrap_interval(*drawn(30, 1.0, 1), coverage=c) for c in (0.5, 0.8, 0.99)]
    for (low, high), (lower, higher) in itertools.pairwise(limits):
        assert lower < low < high < higher


def test_the_bootstrap_is_seeded_and_nan_where_undefined() -> None:
    scores, predictions = drawn(20, 1.0, seed=0)
    assert bootstrap_interval(scores, predictions) == bootstrap_interval(scores, predictions)
    assert bootstrap_interval(scores, predictions) != bootstrap_interval(
        scores, predictions, seed=1
    )
    for undefined in (([1], [1]), ([1, 2, 3], [5, 5, 5])):
        assert np.isnan(bootstrap_interval(*undefined)).all()
