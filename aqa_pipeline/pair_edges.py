"""Order statistics of the differences of all training pairs, without listing the pairs.

A thousand clips have half a million pairs, which are simply listed; a hundred thousand have
five thousand million. Beyond :data:`MOST_LISTED` pairs the k-th smallest difference is found
by bisection: how many pairs differ by at most t is counted from the sorted labels of each
group, in N log N steps.

How exact: the bisection ends within 1e-9 label points of the true difference, which is then
rounded to 1e-4 as every difference is. So the result equals that of sorting all pairs, unless
a difference lies within 1e-9 of a place where the rounding turns.

Source: Eq. 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aqa_pipeline.pairs import pair_deltas

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MOST_LISTED = 4_000_000  #: pairs
_CLOSE_POINTS = 1e-9


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
        """The differences, without their sign, that stand at places of their sorted list.

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
            # More than `position` pairs up to here: the one at that place is among them.
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
