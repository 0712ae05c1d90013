from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqa_pipeline.core.pairs import (
    ExemplarKeys,
    GroupTable,
    group_pairs,
    pair_deltas,
    vote_exemplars,
)

group_lists = st.lists(st.integers(0, 5), max_size=40)


def test_pairs_by_hand() -> None:
    first, second = group_pairs([1, 0, 1, 1])
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 2), (0, 3), (2, 3)]
    assert pair_deltas([5.0, 9.0, 7.0, 4.0], [1, 0, 1, 1]).tolist() == [2.0, -1.0, -3.0]


@given(group_lists)
def test_pairs_equal_a_double_loop(groups: list[int]) -> None:
    first, second = group_pairs(groups)
    found = set(zip(first.tolist(), second.tolist(), strict=True))
    expected = {(i, j) for i, j in combinations(range(len(groups)), 2) if groups[i] == groups[j]}
    assert found == expected
    assert len(first) == len(expected), "each pair once"


def test_clips_that_are_all_alone_make_no_pair() -> None:
    assert pair_deltas([1.0, 2.0, 3.0], [0, 1, 2]).size == 0
    assert pair_deltas([], []).size == 0


@given(group_lists, st.integers(0, 3))
def test_a_group_table_holds_the_members_in_order(groups: list[int], more: int) -> None:
    num_groups = max(groups, default=0) + 1 + more
    table = GroupTable.from_groups(groups, num_groups=num_groups)
    assert table.members.shape[0] == len(table.size) == num_groups
    for group in range(num_groups):
        expected = [i for i, g in enumerate(groups) if g == group]
        assert table.members[group, : table.size[group]].tolist() == expected
        if expected:
            assert set(table.members[group].tolist()) == set(expected), "padding stays inside"


def test_known_keys_match_themselves() -> None:
    keys = ExemplarKeys.of([("b", 3.0), ("a", 2.0), ("b", 3.0), ("a", 1.5)])
    assert keys.values == (("a", 1.5), ("a", 2.0), ("b", 3.0))
    group, fallback = keys.match([("b", 3.0), ("a", 1.5)])
    assert group.tolist() == [2, 0]
    assert not fallback.any()


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        pytest.param(("dive", 2.9), ("dive", 3.0), id="nearer above"),
        pytest.param(("dive", 2.2), ("dive", 2.0), id="nearer below"),
        pytest.param(("dive", 2.5), ("dive", 2.0), id="half-way: the lower"),
        pytest.param(("dive", 99.0), ("dive", 3.0), id="beyond the range"),
        pytest.param(("vault", 2.9), ("vault", 6.0), id="text goes before numbers"),
        pytest.param(("ski", 5.1), ("vault", 6.0), id="no text agrees: numbers decide"),
    ],
)
def test_a_key_unseen_in_training_falls_back_to_the_nearest(
    asked: tuple[str | float, ...], nearest: tuple[str | float, ...]
) -> None:
    keys = ExemplarKeys.of([("dive", 2.0), ("dive", 3.0), ("vault", 6.0)])
    group, fallback = keys.match([asked])
    assert keys.values[int(group[0])] == nearest
    assert fallback.tolist() == [True]


def test_half_way_is_not_decided_by_float_noise() -> None:
    keys = ExemplarKeys.of([(3.1,), (3.3,)])
    assert 3.3 - 3.2 < 3.2 - 3.1, "floats would say the upper"
    assert keys.match([(3.2,)])[0].tolist() == [0]


def test_an_empty_key_compares_everything_with_everything() -> None:
    group, fallback = ExemplarKeys.of([(), ()]).match([(), (), ()])
    assert group.tolist() == [0, 0, 0]
    assert not fallback.any()


def test_eq8_exemplars_by_hand() -> None:
    pool = [0, 1, 0, 2, 0]
    chosen = vote_exemplars([2, 0, 3], pool, num_exemplars=None, seed=0)
    assert chosen.tolist() == [[3, -1, -1], [0, 2, 4], [-1, -1, -1]]


@given(
    pool=st.lists(st.integers(0, 3), min_size=4, max_size=60),
    queries=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    votes=st.integers(1, 12),
    seed=st.integers(0, 9),
)
def test_eq8_exemplars_are_distinct_clips_of_the_querys_group(
    pool: list[int], queries: list[int], votes: int, seed: int
) -> None:
    chosen = vote_exemplars(queries, pool, num_exemplars=votes, seed=seed)
    for group, row in zip(queries, chosen.tolist(), strict=True):
        present = [i for i in row if i >= 0]
        assert row == present + [-1] * (len(row) - len(present)), "padded at the end"
        assert len(present) == len(set(present)) == min(votes, pool.count(group))
        assert all(pool[i] == group for i in present)
        alone = vote_exemplars([group], pool, num_exemplars=votes, seed=seed)[0]
        assert alone.tolist() == present, "whoever else is asked"


def test_eq8_a_seed_draws_the_same_exemplars_and_another_draws_others() -> None:
    pool = np.zeros(100, dtype=int)
    draws = [vote_exemplars([0], pool, num_exemplars=10, seed=seed)[0] for seed in range(300)]
    np.testing.assert_array_equal(vote_exemplars([0], pool, num_exemplars=10, seed=7)[0], draws[7])
    counts = np.bincount(np.concatenate(draws), minlength=100)
    assert counts.sum() == 3000
    assert 10 <= counts.min() <= counts.max() <= 55, "30 expected, standard deviation 5.2"


def test_groups_draw_apart() -> None:
    # Were the draw the same in each group, equal places would be taken in both.
    pool = np.repeat([0, 1], 100)
    chosen = vote_exemplars([0, 1], pool, num_exemplars=10, seed=0)
    assert (chosen[0] != chosen[1] - 100).any()


def test_no_query_needs_no_exemplar() -> None:
    assert vote_exemplars([], [0, 1], num_exemplars=10, seed=0).shape == (0, 0)
