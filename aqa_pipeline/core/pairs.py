"""Exemplars of a query: those that share its key, and those that vote.

Conventions
-----------
query, exemplar
    The clip to be scored and a training clip whose score is known.
group
    Clips that may be compared: equal in the columns of the exemplar key (category,
    difficulty, ...). Groups are numbered from 0 in sorted order of their key.
pool
    The clips exemplars may come from; ``pool_*`` arrays describe it, one entry a clip.

Draws at test time depend on the seed and the group alone, never on which other queries
are asked at the same time: a clip scored on its own gets the prediction it got inside a
test set.

Source: Sec. 3.1 (exemplar selection) and Eq. 8-9 (voting).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def group_pairs(groups: npt.ArrayLike) -> tuple[IntArray, IntArray]:
    """All unordered pairs of different clips of the same group.

    Parameters
    ----------
    groups : array_like of int, shape=(N,)

    Returns
    -------
    first, second : ndarray of int64, shape=(T,)
        Positions, ``first < second``. Both orders are trained; the mirrored pair is the
        caller's to add.
    """
    groups = np.asarray(groups)
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if groups.size else []
    firsts, seconds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for member in members:
        upper_i, upper_j = np.triu_indices(len(member), k=1)
        firsts.append(member[upper_i])
        seconds.append(member[upper_j])
    return np.concatenate(firsts), np.concatenate(seconds)


def pair_deltas(labels: npt.ArrayLike, groups: npt.ArrayLike) -> FloatArray:
    """Differences of all unordered same-group pairs, in label points, shape=(T,).

    This is the list delta of Sec. 3.2 with one entry for each unordered pair; Eq. 5 over
    ordered pairs takes it together with its negative.
    """
    values = np.asarray(labels, dtype=np.float64)
    first, second = group_pairs(groups)
    return values[second] - values[first]


@dataclass(frozen=True)
class GroupTable:
    """Members of each group as one padded table, so that draws are a gather.

    Attributes
    ----------
    members : ndarray of int64, shape=(G, largest group)
        Positions of the clips of each group; padded by repeating its first member.
    size : ndarray of int64, shape=(G,)
    """

    members: IntArray
    size: IntArray

    @classmethod
    def from_groups(cls, groups: npt.ArrayLike, *, num_groups: int) -> GroupTable:
        """Build the table from the group number of each clip, shape=(N,)."""
        groups = np.asarray(groups, dtype=np.int64)
        size = np.bincount(groups, minlength=num_groups).astype(np.int64)
        order = np.argsort(groups, kind="stable")
        first = np.concatenate([[0], np.cumsum(size)[:-1]])
        column = np.arange(max(int(size.max(initial=0)), 1))
        inside = column[None, :] < size[:, None]
        flat = first[:, None] + np.where(inside, column[None, :], 0)
        members = order[np.minimum(flat, max(len(order) - 1, 0))] if len(order) else flat * 0
        return cls(members=members.astype(np.int64), size=size)


@dataclass(frozen=True)
class ExemplarKeys:
    """The distinct keys of a pool, and the way from any clip's key to one of them.

    Attributes
    ----------
    values : tuple of tuple
        Distinct keys, sorted; a key holds one entry for each column, text or number.
    """

    values: tuple[tuple[str | float, ...], ...]

    @classmethod
    def of(cls, keys: Sequence[tuple[str | float, ...]]) -> ExemplarKeys:
        return cls(values=tuple(sorted(set(keys))))

    def match(
        self, keys: Sequence[tuple[str | float, ...]]
    ) -> tuple[IntArray, npt.NDArray[np.bool_]]:
        """Group of each key, or of the nearest key where it is not in the pool.

        Nearest: most equal text entries first, then the smallest sum of differences of
        the numbers (difficulty), then the lower key.

        Returns
        -------
        group : ndarray of int64, shape=(len(keys),)
        fallback : ndarray of bool, shape=(len(keys),)
            True where the key itself is not in the pool.
        """
        position = {value: i for i, value in enumerate(self.values)}
        group = np.array([position.get(key, -1) for key in keys], dtype=np.int64).reshape(-1)
        fallback = group < 0
        for i in np.flatnonzero(fallback).tolist():
            distances = [_distance(keys[i], value) for value in self.values]
            group[i] = distances.index(min(distances))
        return group, fallback


def _distance(key: tuple[str | float, ...], other: tuple[str | float, ...]) -> tuple[int, float]:
    differing_text, number_gap = 0, 0.0
    for a, b in zip(key, other, strict=True):
        if isinstance(a, str) or isinstance(b, str):
            differing_text += a != b
        else:
            number_gap += abs(a - b)
    return differing_text, round(number_gap, 9)


def vote_exemplars(
    query_groups: npt.ArrayLike,
    pool_groups: npt.ArrayLike,
    *,
    num_exemplars: int | None,
    seed: int,
) -> IntArray:
    """Exemplars each query is compared with at test time (Eq. 8).

    Parameters
    ----------
    query_groups, pool_groups : array_like of int, shape=(Q,) and (N,)
    num_exemplars : int or None
        M: drawn without repeats once for each group. None: every clip of the group.
        A group with fewer clips gives a shorter vote.
    seed : int

    Returns
    -------
    ndarray of int64, shape=(Q, M)
        Positions in the pool, padded with -1 at the end. With None, M is the size of the
        largest group asked for.
    """
    query_groups = np.asarray(query_groups, dtype=np.int64)
    pool_groups = np.asarray(pool_groups, dtype=np.int64)
    chosen: dict[int, IntArray] = {}
    for group in np.unique(query_groups):
        members = np.flatnonzero(pool_groups == group)
        if num_exemplars is not None and len(members) > num_exemplars:
            draw = np.random.default_rng([seed, int(group)])
            members = np.sort(draw.choice(members, size=num_exemplars, replace=False))
        chosen[int(group)] = members
    width = max((len(members) for members in chosen.values()), default=0)
    index = np.full((len(query_groups), width), -1, dtype=np.int64)
    for group, members in chosen.items():
        index[query_groups == group, : len(members)] = members
    return index
