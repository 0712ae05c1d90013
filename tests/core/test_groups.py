from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aqa_pipeline.core import groups as groups_module
from aqa_pipeline.core.groups import (
    Groups,
    PairLabels,
    eq5_edges,
    eq5_edges_of_pairs,
    round_deltas,
    symmetric_edges,
)
from aqa_pipeline.core.pairs import pair_deltas
from aqa_pipeline.errors import DataError

#: Score differences as they come: half points, so that ties and exact edges are common.
half_points = st.lists(st.integers(-60, 60).map(lambda n: n / 2), min_size=1, max_size=80)
group_counts = st.sampled_from([2, 4, 8, 16])


def one_group(edges: npt.NDArray[np.float64], delta: float) -> int:
    """The only interval that holds delta, read off the definition; fails if not one does."""
    pairs = list(pairwise(edges.tolist()))
    if delta >= 0:
        holds = [left <= delta < right for left, right in pairs]
    else:
        holds = [left < delta <= right for left, right in pairs]
    assert sum(holds) == 1
    return holds.index(True)


def test_eq5_bounds_of_a_hand_sorted_list() -> None:
    deltas = [4.0, -5.0, 0.5, 7.0, -2.0, 1.0, -3.0, 2.0, 0.0, 9.0]
    # sorted: -5 -3 -2 0 0.5 1 2 4 7 9; floor(9 r / 4) = 0, 2, 4, 6, 9
    assert eq5_edges(deltas, num_groups=4).tolist() == [-5.0, -2.0, 0.5, 2.0, 9.0]


@given(deltas=half_points, num_groups=group_counts)
def test_eq5_equals_the_formula_read_aloud(deltas: list[float], num_groups: int) -> None:
    total = len(deltas)
    positions = [floor((total - 1) * Fraction(r, num_groups)) for r in range(num_groups + 1)]
    expected = [sorted(deltas)[i] for i in positions]
    assert eq5_edges(deltas, num_groups=num_groups).tolist() == expected


def test_eq5_groups_hold_equally_many_pairs() -> None:
    deltas = np.random.default_rng(0).permutation(np.arange(-500, 500)) / 100 + 0.005
    groups = Groups(eq5_edges(deltas, num_groups=16))
    counts = np.bincount(groups.leaf_and_offset(deltas)[0], minlength=16)
    assert counts.sum() == 1000
    assert np.abs(counts - 1000 / 16).max() <= 1.5


def test_symmetric_bounds_by_hand() -> None:
    # |delta| sorted: 0.5 1 2 3 5; floor(4 r / 2) = 0, 2, 4; ends replaced by 0 and the range
    edges = symmetric_edges([-3.0, 0.5, 5.0, -1.0, 2.0], num_groups=4, score_range=30.0)
    assert edges.tolist() == [-30.0, -2.0, 0.0, 2.0, 30.0]


@given(deltas=half_points, num_groups=group_counts, score_range=st.integers(1, 40))
def test_symmetric_bounds_mirror_at_zero(
    deltas: list[float], num_groups: int, score_range: int
) -> None:
    edges = symmetric_edges(deltas, num_groups=num_groups, score_range=score_range)
    np.testing.assert_array_equal(edges, -edges[::-1])
    assert (np.diff(edges) >= 0).all()
    assert (edges[num_groups // 2], edges[-1]) == (0, score_range)


def test_symmetric_bounds_ignore_the_sign_of_a_pair() -> None:
    deltas = np.random.default_rng(1).normal(size=99)
    edges = symmetric_edges(deltas, num_groups=8, score_range=9)
    np.testing.assert_array_equal(symmetric_edges(-deltas, num_groups=8, score_range=9), edges)


@pytest.mark.parametrize("zero", [0.0, -0.0, 1e-9, -1e-9])
def test_zero_belongs_to_the_first_group_that_is_not_negative(zero: float) -> None:
    groups = Groups(symmetric_edges([1.0, 2.0, 3.0], num_groups=4, score_range=4))
    leaf, offset = groups.leaf_and_offset(zero)
    assert (leaf.item(), offset.item()) == (2, 0.0)


def test_zero_skips_groups_emptied_by_ties() -> None:
    edges = symmetric_edges([0.0, 0.0, 0.0, 0.0, 0.0, 2.0], num_groups=8, score_range=3)
    assert edges.tolist() == [-3, 0, 0, 0, 0, 0, 0, 0, 3]
    assert Groups(edges).leaf_and_offset([0.0, -1.0])[0].tolist() == [7, 0]


def test_edges_open_to_the_side_of_zero() -> None:
    groups = Groups(np.array([-4.0, -2.0, 0.0, 2.0, 4.0]))
    leaf, offset = groups.leaf_and_offset([-4, -2, -1, 0, 1, 2, 4])
    assert leaf.tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert offset.tolist() == [0, 1, 0.5, 0, 0.5, 0, 1]


def test_deltas_beyond_the_range_join_the_outer_groups() -> None:
    groups = Groups(np.array([-4.0, -2.0, 0.0, 2.0, 4.0]))
    leaf, offset = groups.leaf_and_offset([-99.0, 4.0, 99.0])
    assert leaf.tolist() == [0, 3, 3]
    assert offset.tolist() == [0, 1, 1]


def test_deltas_beyond_the_range_join_the_outer_groups_that_are_not_empty() -> None:
    groups = Groups(np.array([-3.0, -3.0, -1.0, 0.0, 2.0, 2.0]))
    assert groups.outer_leaves == (1, 3)
    leaf, offset = groups.leaf_and_offset([-9.0, -3.0, 2.0, 9.0])
    assert leaf.tolist() == [1, 1, 3, 3]
    assert offset.tolist() == [0, 0, 1, 1]


@given(training=half_points, num_groups=group_counts, symmetric=st.booleans())
def test_every_delta_is_in_exactly_one_group(
    training: list[float], num_groups: int, symmetric: bool
) -> None:
    if symmetric:
        edges = symmetric_edges(training, num_groups=num_groups, score_range=31)
    else:
        assume(min(training) < max(training))
        edges = eq5_edges(training, num_groups=num_groups)
    groups = Groups(edges)
    inside = [d for d in np.arange(-31, 31, 0.25).tolist() if edges[0] < d < edges[-1]]
    leaf, offset = groups.leaf_and_offset(inside)
    assert leaf.tolist() == [one_group(edges, d) for d in inside]
    assert (groups.width[leaf] > 0).all(), "no delta enters an empty group"
    assert ((offset >= 0) & (offset <= 1)).all()


@given(training=half_points, num_groups=group_counts, score_range=st.integers(1, 40))
def test_swapping_a_pair_mirrors_its_group_and_offset(
    training: list[float], num_groups: int, score_range: int
) -> None:
    groups = Groups(symmetric_edges(training, num_groups=num_groups, score_range=score_range))
    deltas = np.setdiff1d(np.arange(-45, 45, 0.25), [0.0])  # zero is its own mirror image
    leaf, offset = groups.leaf_and_offset(deltas)
    mirrored_leaf, mirrored_offset = groups.leaf_and_offset(-deltas)
    np.testing.assert_array_equal(mirrored_leaf, num_groups - 1 - leaf)
    np.testing.assert_allclose(mirrored_offset, 1 - offset, atol=1e-12)


@given(training=half_points, num_groups=group_counts)
def test_eq7_returns_the_delta_its_label_was_made_of(
    training: list[float], num_groups: int
) -> None:
    groups = Groups(symmetric_edges(training, num_groups=num_groups, score_range=31))
    deltas = np.arange(-31, 31.25, 0.25)
    np.testing.assert_allclose(groups.delta(*groups.leaf_and_offset(deltas)), deltas, atol=1e-9)


def test_eq7_by_hand() -> None:
    groups = Groups(np.array([-4.0, -1.0, 0.0, 1.0, 4.0]))
    assert groups.delta([0, 3], [0.5, 1.5]).tolist() == [-2.5, 5.5]


def test_float_noise_moves_no_pair() -> None:
    groups = Groups(symmetric_edges([0.1, 0.3, 0.7], num_groups=4, score_range=1))
    assert groups.edges.tolist() == [-1, -0.3, 0, 0.3, 1]
    noisy = np.array([0.1 + 0.2, 0.9 - 0.6, 8.4 - 8.1, 0.3])
    assert len(set(noisy.tolist())) > 1, "the arithmetic is noisy"
    for sign, leaf in ((1, 3), (-1, 0)):
        assert groups.leaf_and_offset(sign * noisy)[0].tolist() == [leaf] * 4


@given(st.integers(-(10**7), 10**7), st.floats(-4e-5, 4e-5))
def test_rounding_gives_the_float_nearest_to_the_decimal(ticks: int, noise: float) -> None:
    assert round_deltas(ticks / 10_000 + noise) == float(f"{ticks}e-4")


def test_leaf_and_offset_keep_the_shape() -> None:
    groups = Groups(np.array([-1.0, 0.0, 1.0]))
    leaf, offset = groups.leaf_and_offset(np.zeros((2, 3)))
    assert leaf.shape == offset.shape == (2, 3)


@pytest.mark.parametrize("num_groups", [0, 1, 3, 12, -4])
def test_a_tree_needs_a_power_of_two(num_groups: int) -> None:
    with pytest.raises(DataError, match=f"num_groups is {num_groups}; a binary tree"):
        eq5_edges([1.0, 2.0], num_groups=num_groups)
    with pytest.raises(DataError, match=f"num_groups is {num_groups}; a binary tree"):
        symmetric_edges([1.0, 2.0], num_groups=num_groups, score_range=3)


def test_groups_that_cannot_be() -> None:
    with pytest.raises(DataError, match="no pair of training clips"):
        eq5_edges([], num_groups=4)
    with pytest.raises(DataError, match="not a finite number"):
        eq5_edges([1.0, float("nan")], num_groups=4)
    for score_range in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match=f"score_range is {score_range}; it must be finite"):
            symmetric_edges([1.0], num_groups=4, score_range=score_range)
    with pytest.raises(DataError, match="all groups are empty"):
        Groups(eq5_edges([2.0, 2.0, 2.0], num_groups=4))
    for edges in ([0.0, 2.0, 1.0], [0.0, float("nan"), 1.0]):
        with pytest.raises(DataError, match="group edges must ascend"):
            Groups(np.array(edges))


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
            patch.setattr(groups_module, "MOST_LISTED", most)
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
    assert len(pairs) == 49_995_000 > groups_module.MOST_LISTED
    median = pairs.magnitudes_at([len(pairs) // 2])[0]
    # Of two draws from the same normal: 0.6745 standard deviations of their difference.
    assert median == pytest.approx(0.6745 * 4 * 2**0.5, rel=0.03)
    assert pairs.mean_square() == pytest.approx(2 * labels.var(), rel=1e-3)
