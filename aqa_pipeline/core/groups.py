"""Groups of GART: intervals of the score difference, and a difference's offset in them.

Conventions
-----------
delta
    Label of the query minus label of the exemplar, in label points.
edges
    float64, shape ``(R + 1,)``, ascending; group r is the interval between ``edges[r]``
    and ``edges[r + 1]``. Tied quantiles make groups of width zero: they stay in the
    list, so that the tree keeps its shape, but no delta ever falls into one.
leaf
    0-based number of a group, int64.
offset
    ``(delta - left) / width``, in 0..1 (sigma in the paper).

Intervals are ``[left, right)`` for delta >= 0 and ``(left, right]`` for delta < 0, so
that swapping query and exemplar mirrors the leaf. Deltas outside all groups belong to
the outermost one (the published program trains the lowest leaf with them).

Edges are order statistics of the differences of all training pairs. A thousand clips have half a
million pairs, which are simply listed; a hundred thousand have five thousand million. Beyond
:data:`MOST_LISTED` pairs the k-th smallest difference is found by bisection: how many pairs
differ by at most t is counted from the sorted labels of each group, in N log N steps. The
bisection ends within 1e-9 label points of the true difference, which is then rounded to 1e-4 as
every difference is; the result equals that of sorting all pairs, unless a difference lies within
1e-9 of where the rounding turns.

Source: Sec. 3.2, Eq. 5 and Eq. 7; official code: symmetric groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from aqa_pipeline.core.pairs import pair_deltas
from aqa_pipeline.errors import DataError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Deltas are rounded to this many decimals before edges and before labels: a third of all
#: MTL-AQA pairs lies exactly on an inner edge, and float noise would move them by a leaf.
DELTA_DECIMALS = 4
MOST_LISTED = 4_000_000  #: pairs
_CLOSE_POINTS = 1e-9


@dataclass(frozen=True, eq=False)
class Groups:
    """Intervals of the score difference and the arithmetic on them.

    Parameters
    ----------
    edges : ndarray of float64, shape=(R + 1,)
        Ascending, from :func:`eq5_edges` or :func:`symmetric_edges`.
    """

    edges: FloatArray

    def __post_init__(self) -> None:
        if not (np.diff(self.edges) >= 0).all():  # so asked, NaN is refused too
            raise DataError(f"group edges must ascend, found {self.edges.tolist()}")
        if not (np.diff(self.edges) > 0).any():
            raise DataError(
                "all groups are empty: every training pair has the same score difference; "
                "a head cannot learn from equal scores"
            )

    @property
    def num_groups(self) -> int:
        return len(self.edges) - 1

    @cached_property
    def left(self) -> FloatArray:
        """Left end of each group, shape=(R,)."""
        return self.edges[:-1]

    @cached_property
    def width(self) -> FloatArray:
        """Width of each group, shape=(R,); 0 for a group made empty by ties."""
        return np.diff(self.edges)

    @cached_property
    def outer_leaves(self) -> tuple[int, int]:
        """Lowest and highest leaf that is not empty."""
        reachable = np.flatnonzero(self.width > 0)
        return int(reachable[0]), int(reachable[-1])

    def leaf_and_offset(self, deltas: npt.ArrayLike) -> tuple[IntArray, FloatArray]:
        """Group of each delta and its offset inside (the labels of Eq. 6).

        Parameters
        ----------
        deltas : array_like, shape=(...)
            In label points, of any sign and size.

        Returns
        -------
        leaf : ndarray of int64, shape=(...)
        offset : ndarray of float64, shape=(...), in 0..1
        """
        delta = round_deltas(deltas)
        leaf = np.where(
            delta >= 0,
            np.searchsorted(self.edges, delta, side="right") - 1,
            np.searchsorted(self.edges, delta, side="left") - 1,
        )
        leaf = np.clip(leaf, *self.outer_leaves).astype(np.int64)
        offset = np.clip((delta - self.left[leaf]) / self.width[leaf], 0.0, 1.0)
        return leaf, offset

    def delta(self, leaf: npt.ArrayLike, offset: npt.ArrayLike) -> FloatArray:
        """Score difference from a leaf and an offset inside it (Eq. 7), in label points."""
        leaf = np.asarray(leaf)
        result: FloatArray = self.left[leaf] + np.asarray(offset) * self.width[leaf]
        return result


def eq5_edges(deltas: npt.ArrayLike, *, num_groups: int) -> FloatArray:
    """Group bounds of equal mass from the sorted differences of all training pairs (Eq. 5).

    ``edges[r] = sorted(deltas)[floor((T - 1) * r / R)]`` for r = 0..R.

    Parameters
    ----------
    deltas : array_like, shape=(T,)
        Differences of all ordered training pairs, in label points.
    num_groups : int
        R, a power of two.

    Returns
    -------
    ndarray of float64, shape=(num_groups + 1,)

    Raises
    ------
    DataError
        If there is no pair, a delta is not finite or R is not a power of two.
    """
    rounded = round_deltas(deltas)
    _check(rounded, num_groups)
    positions = (rounded.size - 1) * np.arange(num_groups + 1) // num_groups
    # A partition is enough: only R + 1 of the T order statistics are asked for.
    return np.partition(rounded, np.unique(positions))[positions]


def eq5_edges_of_pairs(pairs: PairLabels, *, num_groups: int) -> FloatArray:
    """:func:`eq5_edges` of all pairs in both orders, which need not be listed.

    Parameters
    ----------
    pairs : PairLabels
    num_groups : int
        R, a power of two.

    Returns
    -------
    ndarray of float64, shape=(num_groups + 1,)

    Raises
    ------
    DataError
        As :func:`eq5_edges`.
    """
    count = len(pairs)
    _check_groups(num_groups)
    _check_count(count)
    positions = (2 * count - 1) * np.arange(num_groups + 1) // num_groups
    # The list of both orders is the magnitudes, mirrored: first those with a minus.
    mirrored = positions < count
    ranks = np.where(mirrored, count - 1 - positions, positions - count)
    magnitudes = round_deltas(pairs.magnitudes_at(ranks))
    # No -0.0, which listed pairs do not have either.
    return np.where(mirrored, -magnitudes, magnitudes) + 0.0


def symmetric_edges(
    deltas: npt.ArrayLike | PairLabels, *, num_groups: int, score_range: float
) -> FloatArray:
    """Equal-mass groups of |delta|, mirrored at zero (official code: symmetric groups).

    ``|delta|`` is cut by Eq. 5 into R / 2 groups; the innermost edge is 0 and the
    outermost ``score_range``.

    Parameters
    ----------
    deltas : array_like, shape=(T,), or PairLabels
        Differences of the training pairs, in label points; their sign is ignored.
    num_groups : int
        R, a power of two.
    score_range : float
        Outer edge, in label points.

    Returns
    -------
    ndarray of float64, shape=(num_groups + 1,)
        Antisymmetric: ``edges == -edges[::-1]``.

    Raises
    ------
    DataError
        As :func:`eq5_edges`, or if ``score_range`` is not above 0.
    """
    if not 0 < score_range < np.inf:
        raise DataError(
            f"score_range is {score_range}; it must be finite and above 0 (are all labels equal?)"
        )
    half = num_groups // 2
    if isinstance(deltas, PairLabels):
        _check_groups(num_groups)
        _check_count(len(deltas))
        positions = (len(deltas) - 1) * np.arange(half + 1) // half
        upper = round_deltas(deltas.magnitudes_at(positions))
    else:
        magnitudes = np.abs(round_deltas(deltas))
        _check(magnitudes, num_groups)
        positions = (magnitudes.size - 1) * np.arange(half + 1) // half
        upper = np.partition(magnitudes, np.unique(positions))[positions]
    upper[0] = 0.0
    upper[-1] = score_range
    # Quantiles beyond the range (labels wider than the protocol says) close up to it.
    upper = np.minimum(upper, score_range)
    return np.concatenate([-upper[:0:-1], upper])


@dataclass(frozen=True, eq=False)
class PairLabels:
    """The unordered pairs of different clips of the same group, by their labels.

    Attributes
    ----------
    labels : ndarray of float64, shape=(N,)
        In label points.
    groups : ndarray of int64, shape=(N,)
    """

    labels: FloatArray
    groups: IntArray

    def __len__(self) -> int:
        """T, the number of pairs."""
        size = np.bincount(self.groups) if len(self.groups) else np.zeros(1, dtype=np.int64)
        return int((size * (size - 1) // 2).sum())

    def mean_square(self) -> float:
        """Mean of the squared differences, in label points squared."""
        if len(self) <= MOST_LISTED:
            return float(np.mean(pair_deltas(self.labels, self.groups) ** 2))
        # Sum over pairs of (a - b)^2 is n times the sum of squares about the group's mean.
        total = sum(len(own) * np.sum((own - own.mean()) ** 2) for own in self._sorted())
        return float(total / len(self))

    def magnitudes_at(self, positions: npt.ArrayLike) -> FloatArray:
        """The differences, without their sign, that stand at positions of their sorted list.

        Parameters
        ----------
        positions : array_like of int, shape=(n,)
            0-based, in ``0 .. T - 1``.

        Returns
        -------
        ndarray of float64, shape=(n,)
            Not rounded where they were found by bisection.
        """
        wanted = np.asarray(positions, dtype=np.int64)
        if len(self) <= MOST_LISTED:
            magnitudes = np.abs(pair_deltas(self.labels, self.groups))
            listed: FloatArray = np.partition(magnitudes, np.unique(wanted))[wanted]
            return listed
        by_group = self._sorted()
        low = np.full(len(wanted), -_CLOSE_POINTS)
        high = np.full(len(wanted), max(float(own[-1] - own[0]) for own in by_group))
        while (high - low).max() > _CLOSE_POINTS:
            middle = (low + high) / 2
            # More than `position` pairs up to here: the one at that position is among them.
            enough = np.array([_count(by_group, t) for t in middle.tolist()]) > wanted
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        found: FloatArray = np.maximum(high, 0.0)
        return found

    def _sorted(self) -> list[FloatArray]:
        order = np.lexsort((self.labels, self.groups))
        bounds = np.flatnonzero(np.diff(self.groups[order])) + 1
        return list(np.split(self.labels[order], bounds))


def _count(by_group: list[FloatArray], t: float) -> int:
    """Pairs that differ by at most ``t``."""
    return sum(
        int((np.searchsorted(own, own + t, side="right") - np.arange(len(own)) - 1).clip(0).sum())
        for own in by_group
    )


def round_deltas(deltas: npt.ArrayLike) -> FloatArray:
    """Deltas at :data:`DELTA_DECIMALS` decimals: equal decimals become equal floats."""
    # It ends in a division by 10^4, which gives the float nearest to the decimal;
    # an integer times 1e-4 would not.
    rounded: FloatArray = np.asarray(deltas, dtype=np.float64).round(DELTA_DECIMALS)
    return rounded


def _check(deltas: FloatArray, num_groups: int) -> None:
    _check_groups(num_groups)
    _check_count(deltas.size)
    if not np.isfinite(deltas).all():
        raise DataError("a score difference is not a finite number; check the manifest's scores")


def _check_groups(num_groups: int) -> None:
    if num_groups < 2 or num_groups & (num_groups - 1):
        raise DataError(
            f"num_groups is {num_groups}; a binary tree needs a power of two, 2 or more"
        )


def _check_count(count: int) -> None:
    if not count:
        raise DataError(
            "no pair of training clips to make groups from: at least 2 clips are needed"
        )
