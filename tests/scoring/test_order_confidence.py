from __future__ import annotations

import numpy as np
import pytest

from aqa_pipeline.scoring.compare import RankingConfidence


@pytest.mark.parametrize("shrunk", [False, True])
def test_of_pairs_given_a_probability_that_share_turns_out_so(shrunk: bool) -> None:
    """Whether the predictor errs around the truth or the truth around the predictor."""
    rng = np.random.default_rng(1)
    one, noise = rng.normal(0, 3, 5000), 2 * rng.standard_t(4, 5000)
    truth, predicted = (one + noise, one) if shrunk else (one, one + noise)
    known = np.arange(600)
    confidence = RankingConfidence(truth[known], predicted[known], np.ones(600))
    a, b = rng.integers(600, 5000, size=(2, 8000))
    said = np.array(
        [confidence.probability(d, scale_a=1, scale_b=1) for d in predicted[a] - predicted[b]]
    )
    happened = truth[a] > truth[b]
    for low, high in ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0)):
        inside = (said >= low) & (said < high)
        assert inside.sum() > 700
        assert abs(happened[inside].mean() - said[inside].mean()) < 0.05


def test_the_two_orders_of_a_pair_sum_to_one_and_a_tie_is_a_half() -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(size=60)
    confidence = RankingConfidence(truth, truth + rng.normal(size=60), rng.uniform(1, 3, 60))
    for difference in (0.0, 0.1, 1.0, 50.0):
        p = confidence.probability(difference, scale_a=2, scale_b=3)
        q = confidence.probability(-difference, scale_a=3, scale_b=2)
        assert p + q == pytest.approx(1)
    assert confidence.probability(0.0, scale_a=1, scale_b=1) == pytest.approx(0.5)


def test_it_rises_with_the_difference_and_is_never_certain() -> None:
    truth = np.arange(8.0)
    confidence = RankingConfidence(truth, truth, np.ones(8))
    said = [confidence.probability(d, scale_a=1, scale_b=1) for d in (-9, -1, 0, 1, 9)]
    assert said == sorted(said)
    assert said[-1] == pytest.approx(0.9)  # 1 - 1 / (8 + 2)


def test_a_difference_counts_less_where_a_point_is_worth_more() -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(size=200)
    confidence = RankingConfidence(truth, truth + rng.normal(size=200), np.ones(200))
    small = confidence.probability(1.0, scale_a=1, scale_b=1)
    large = confidence.probability(1.0, scale_a=3, scale_b=3)
    assert 0.5 < large < small


def test_many_clips_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aqa_pipeline.scoring.compare._MOST_CLIPS", 10)
    truth = np.arange(25.0)
    assert RankingConfidence(truth, truth, np.ones(25)).probability(5, scale_a=1, scale_b=1) > 0.9
