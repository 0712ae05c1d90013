"""Contributions of snippets: Shapley's formula by hand, by its axioms, and against brute force."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest

from aqa_pipeline.errors import UsageError
from aqa_pipeline.runs.evaluate import predict_clips
from aqa_pipeline.runs.folder import Run
from aqa_pipeline.scoring.shapley import Contributions, mean_contributions, snippet_contributions
from tests.support.drawn_run import drawn_run, one_clip
from tests.support.planted import planted_clips

ROWS = [0, 3, 5, 8]


def by_all_orders(run: Run, rows: list[int], clip: Any) -> np.ndarray[Any, Any]:
    """The definition itself: the mean gain over all orders, one coalition at a time."""
    from aqa_pipeline.scoring.shapley import _scores

    average = run.exemplars.features.mean(axis=0)
    own = clip.features[0]
    num_snippets = len(own)
    gains = np.zeros(num_snippets)
    orders = list(permutations(range(num_snippets)))
    for order in orders:
        features = average.copy()
        before = _scores(run, clip, features[None], np.array(rows))[0]
        for snippet in order:
            features[snippet] = own[snippet]
            after = _scores(run, clip, features[None], np.array(rows))[0]
            gains[snippet] += after - before
            before = after
    return gains / len(orders)


@pytest.mark.parametrize("aggregation", ["mean", "ordered", "attention", "lstm"])
def test_contributions_are_the_mean_gain_over_all_orders(aggregation: str) -> None:
    run, clip = drawn_run(aggregation=aggregation), one_clip()
    found = snippet_contributions(run, clip, ROWS)
    assert found.num_orders == 0
    np.testing.assert_allclose(found.points, by_all_orders(run, ROWS, clip), atol=1e-4)
    assert np.abs(found.points).max() > 1e-2  # and not by all being 0


def test_they_add_up_from_an_average_clip_to_the_predicted_score() -> None:
    run = drawn_run()
    clip = one_clip()
    predicted = predict_clips(run, clip)
    rows = [row for row in predicted.exemplars[0].tolist() if row >= 0]
    found = snippet_contributions(run, clip, rows)
    assert found.score == pytest.approx(predicted.score[0], abs=1e-4)
    assert found.points.sum() == pytest.approx(found.score - found.baseline, abs=1e-9)
    np.testing.assert_array_equal(found.standard_error, 0)


def test_an_average_snippet_is_worth_nothing() -> None:
    run, clip = drawn_run(), one_clip()
    clip.features[0, 1] = run.exemplars.features.mean(axis=0)[1]
    found = snippet_contributions(run, clip, ROWS)
    assert found.points[1] == pytest.approx(0, abs=1e-6)
    assert abs(found.points[0]) > 1e-3


def test_drawn_orders_add_up_too_and_come_near_the_exact_answer() -> None:
    pool = planted_clips(20, snippets=8)
    run, clip = drawn_run(pool=pool), one_clip(snippets=8)
    exact = snippet_contributions(run, clip, ROWS, max_votes=10**6)
    drawn = snippet_contributions(run, clip, ROWS, max_votes=2000)
    assert exact.num_orders == 0
    assert drawn.num_orders == 2000 // (8 * 9) // 2 * 2
    assert drawn.points.sum() == pytest.approx(exact.points.sum(), abs=1e-9)
    assert (drawn.standard_error > 0).all()
    assert (np.abs(drawn.points - exact.points) < 5 * drawn.standard_error + 1e-6).all()
    again = snippet_contributions(run, clip, ROWS, max_votes=2000)
    np.testing.assert_array_equal(drawn.points, again.points)


def test_a_direct_head_needs_no_exemplar() -> None:
    run, clip = drawn_run(mode="direct"), one_clip()
    found = snippet_contributions(run, clip, [])
    assert found.score == pytest.approx(predict_clips(run, clip).score[0], abs=1e-4)
    assert found.points.sum() == pytest.approx(found.score - found.baseline)


def test_what_cannot_be_explained_is_refused() -> None:
    with pytest.raises(UsageError, match="those of one clip, not of 2"):
        snippet_contributions(drawn_run(), planted_clips(2), ROWS)
    with pytest.raises(UsageError, match="no score without an exemplar"):
        snippet_contributions(drawn_run(), one_clip(), [])


def test_over_folds_the_mean_explains_the_mean_score() -> None:
    a = Contributions(np.array([1.0, 2.0]), np.array([0.3, 0.0]), 10.0, 7.0, 4)
    b = Contributions(np.array([3.0, -2.0]), np.array([0.4, 0.0]), 6.0, 5.0, 6)
    mean = mean_contributions([a, b])
    np.testing.assert_allclose(mean.points, [2.0, 0.0])
    np.testing.assert_allclose(mean.standard_error, [0.25, 0.0])
    assert (mean.score, mean.baseline, mean.num_orders) == (8.0, 6.0, 10)
