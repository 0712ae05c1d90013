from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqa_pipeline.core import groups as pair_edges
from aqa_pipeline.core.groups import PairLabels, eq5_edges, eq5_edges_of_pairs, symmetric_edges
from aqa_pipeline.core.pairs import pair_deltas


@given(
    labels=st.lists(st.integers(0, 300), min_size=3, max_size=40),
    num_groups=st.sampled_from([2, 8, 32]),
    seed=st.integers(0, 9),
)
def test_edges_by_counting_equal_edges_by_listing(
    labels: list[int], num_groups: int, seed: int
) -> None:
    groups = np.random.default_rng(seed).integers(0, 2, len(labels))
    pairs = PairLabels(np.array(labels) / 10 / 2.5, groups)
    deltas = pair_deltas(pairs.labels, groups)
    assert len(pairs) == len(deltas)
    if not len(deltas):
        return
    both = np.concatenate([deltas, -deltas])
    expected = [
        symmetric_edges(deltas, num_groups=num_groups, score_range=30.0),
        eq5_edges(both, num_groups=num_groups),
    ]
    for most in (10**9, 0):  # listed, counted
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pair_edges, "MOST_LISTED", most)
            found = [
                symmetric_edges(pairs, num_groups=num_groups, score_range=30.0),
                eq5_edges_of_pairs(pairs, num_groups=num_groups),
            ]
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)
            assert pairs.mean_square() == pytest.approx(np.mean(deltas**2), abs=1e-9)


def test_fifty_million_pairs_take_no_memory_to_speak_of() -> None:
    labels = np.random.default_rng(0).normal(20, 4, 10_000).round(2)
    pairs = PairLabels(labels, np.zeros(10_000, dtype=np.int64))
    assert len(pairs) == 49_995_000 > pair_edges.MOST_LISTED
    median = pairs.magnitudes_at([len(pairs) // 2])[0]
    # Of two draws from the same normal: 0.6745 standard deviations of their difference.
    assert median == pytest.approx(0.6745 * 4 * 2**0.5, rel=0.03)
    assert pairs.mean_square() == pytest.approx(2 * labels.var(), rel=1e-3)
