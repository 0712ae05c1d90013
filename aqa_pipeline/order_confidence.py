"""How often the clip with the higher predicted score is the better one.

Conventions
-----------
z
    Predicted difference of two clips, in units of the size their errors have together:
    ``(p_i - p_j) / sqrt(scale_i^2 + scale_j^2)``, p in score points.

The calibrating clips are taken in pairs, each in both orders. Of pairs with a small z about half
turn out in the predicted order, of pairs with a large one almost all; between them the share is
found by isotonic regression, which assumes nothing but that it rises.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

FloatArray = npt.NDArray[np.float64]

#: Clips beyond this many are thinned out: there are n x (n - 1) pairs.
_MOST_CLIPS = 1500


class OrderConfidence:
    """The share of pairs in the predicted order, by how far apart they were predicted.

    Parameters
    ----------
    score, prediction : array_like, shape=(n,)
        True and predicted scores of the calibrating clips, in points; n at least 2.
    scale : array_like, shape=(n,)
        Score points a label point is worth.
    """

    def __init__(
        self, score: npt.ArrayLike, prediction: npt.ArrayLike, scale: npt.ArrayLike
    ) -> None:
        columns = [np.asarray(values, dtype=np.float64) for values in (score, prediction, scale)]
        step = max(1, -(-len(columns[0]) // _MOST_CLIPS))
        truth, predicted, size = (values[::step] for values in columns)
        pair = ~np.eye(len(truth), dtype=bool)
        apart = np.hypot(size[:, None], size[None])[pair]
        z = (predicted[:, None] - predicted[None])[pair] / apart
        gap = (truth[:, None] - truth[None])[pair]
        order = np.argsort(z, kind="stable")
        self._z = z[order]
        self._share: FloatArray = isotonic_regression((np.sign(gap[order]) + 1) / 2).x
        self._margin = 1 / (len(truth) + 2)

    def probability(self, difference: float, *, scale_a: float, scale_b: float) -> float:
        """That the first of two clips is truly the better one.

        Few clips cannot vouch for certainty: it stays 1 / (n + 2) away from 0 and 1.

        Parameters
        ----------
        difference : float
            Predicted score of the first minus that of the second, in points.
        scale_a, scale_b : float
            Score points a label point is worth, for each.
        """
        z = difference / float(np.hypot(scale_a, scale_b))
        # Half way between both orders' answers: ties among the z must not prefer one.
        up = float(np.interp(z, self._z, self._share))
        down = float(np.interp(-z, self._z, self._share))
        return float(np.clip((up + 1 - down) / 2, self._margin, 1 - self._margin))
