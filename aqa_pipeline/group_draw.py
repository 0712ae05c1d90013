"""Drawing whole groups of clips (the dives of one broadcast) for one side of a division.

Conventions
-----------
group : ndarray of int64, shape=(N,)
    Number of each clip's group, from 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def draw_groups(
    group: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    fraction: float,
    random: np.random.Generator,
    num_draws: int = 64,
) -> BoolArray:
    """Draw groups that hold about a fraction of the clips, their scores like the others'.

    Of several draws the one is kept whose number of clips and mean score are nearest to what is
    asked for. At least one group is drawn and one left.

    Parameters
    ----------
    group : array_like of int, shape=(N,)
        Two groups or more.
    scores : array_like, shape=(N,)
    fraction : float
        Above 0 and below 1.
    random : numpy.random.Generator
    num_draws : int
        More draws come nearer to what is asked for; of few groups they all end at one choice.

    Returns
    -------
    ndarray of bool, shape=(N,)
        True for the clips of drawn groups.
    """
    group, score = np.asarray(group, dtype=np.int64), np.asarray(scores, dtype=np.float64)
    size, total = np.bincount(group), np.bincount(group, weights=score)
    spread = float(score.std()) or 1.0
    best_cost, best = np.inf, np.zeros(len(size), dtype=bool)
    for _ in range(num_draws):
        order = random.permutation(len(size))
        num_drawn = np.cumsum(size[order])[:-1]
        last = int(np.argmin(np.abs(num_drawn - fraction * len(group))))
        chosen = order[: last + 1]
        mean_gap = total[chosen].sum() / num_drawn[last] - score.mean()
        cost = abs(num_drawn[last] / len(group) - fraction) + abs(mean_gap) / spread
        # Costs that differ only by rounding count as equal: the first draw stays.
        if cost < best_cost - 1e-9:
            best_cost, best = cost, np.isin(np.arange(len(size)), chosen)
    drawn: BoolArray = best[group]
    return drawn
