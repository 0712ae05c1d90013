from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqa_pipeline.datasets.split import draw_groups


@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=8),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 5),
)
def test_groups_go_whole_and_neither_side_is_empty(
    sizes: list[int], fraction: float, seed: int
) -> None:
    group = np.repeat(np.arange(len(sizes)), sizes)
    scores = np.random.default_rng(seed).normal(size=len(group))
    drawn = draw_groups(group, scores, fraction=fraction, random=np.random.default_rng(seed))
    assert 0 < drawn.sum() < len(group)
    assert all(len(set(drawn[group == g])) == 1 for g in range(len(sizes)))


def test_of_groups_of_one_size_those_with_ordinary_scores_are_drawn() -> None:
    # Two of four groups; only 0 with 3, or 1 with 2, has the mean of all.
    group = np.repeat(np.arange(4), 5)
    scores = np.repeat([10.0, 20.0, 30.0, 40.0], 5)
    drawn = draw_groups(group, scores, fraction=0.5, random=np.random.default_rng(1))
    assert drawn.sum() == 10
    assert scores[drawn].mean() == pytest.approx(25)


def test_equal_scores_are_no_division_by_zero() -> None:
    group = np.repeat(np.arange(5), 2)
    drawn = draw_groups(group, np.ones(10), fraction=0.4, random=np.random.default_rng(0))
    assert drawn.sum() == 4
