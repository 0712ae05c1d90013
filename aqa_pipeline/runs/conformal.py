"""Intervals that hold the true score as often as they say (split conformal prediction).

Conventions
-----------
residual
    How far a prediction was from the truth on a clip that had no part in making it, >= 0.
coverage
    Share of true scores that intervals are meant to hold, above 0 and below 1.
n
    Residuals that calibrate. A new clip, drawn like them, is as likely to have any rank among
    the n + 1 of them, so the ceil((n + 1) x coverage)-th smallest residual is at least as large
    as the new one with that probability, whatever the distribution.

Source: Vovk et al., *Algorithmic Learning in a Random World* (2005); Lei et al.,
*Distribution-free predictive inference for regression* (JASA 2018), Sec. 2.2; by group
("Mondrian"): Vovk et al., Sec. 4.5.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

from aqa_pipeline.errors import UsageError

FloatArray = npt.NDArray[np.float64]

#: Residuals beyond the interval, at the least, before a group is trusted with one of its own:
#: with fewer, one or two outliers determine the width.
_BEYOND = 5
#: Clips beyond this many are thinned out where they are taken in pairs.
_MOST_IN_PAIRS = 1500


def check_coverage(coverage: float) -> None:
    """Refuse a coverage that no interval can have.

    Raises
    ------
    UsageError
    """
    if not 0 < coverage < 1:
        raise UsageError(f"coverage is {coverage:g}; it lies between 0 and 1, such as 0.9")


def conformal_quantile(residuals: npt.ArrayLike, coverage: float) -> float:
    """Half width of an interval: the ceil((n + 1) x coverage)-th smallest residual.

    Parameters
    ----------
    residuals : array_like, shape=(n,)
    coverage : float

    Returns
    -------
    float
        Infinite where n is too small for the coverage: fewer than
        :func:`fewest_residuals`.
    """
    values = np.sort(np.asarray(residuals, dtype=np.float64))
    rank = _rank(len(values), coverage)
    return float(values[rank - 1]) if rank <= len(values) else math.inf


def fewest_residuals(coverage: float) -> int:
    """Residuals from which on an interval is finite: 9 for a coverage of 0.9."""
    count = math.ceil(coverage / (1 - coverage) - 1e-9)
    return max(count, 1)


def residuals_for_own_group(coverage: float) -> int:
    """Residuals a group needs for an interval of its own: 50 for a coverage of 0.9."""
    return math.ceil(_BEYOND / (1 - coverage) - 1e-9)


def coverage_spread(
    *, num_residuals: int, num_clips: int, coverage: float, level: float = 0.95
) -> tuple[float, float, float]:
    """Coverage to be expected on new clips, by calibration and test draws alone.

    The number of new clips inside is beta-binomial: the interval itself depends on the n
    residuals, and how many of the new clips it then holds is another draw.

    Parameters
    ----------
    num_residuals, num_clips : int
        That calibrated, and that are looked at.
    coverage : float
    level : float
        Of the interval returned.

    Returns
    -------
    mean, low, high : float
        Shares of the new clips.
    """
    rank = _rank(num_residuals, coverage)
    if rank > num_residuals:
        return 1.0, 1.0, 1.0
    inside = stats.betabinom(num_clips, rank, num_residuals + 1 - rank)
    tail = (1 - level) / 2
    low, high = (float(inside.ppf(p)) / num_clips for p in (tail, 1 - tail))
    return float(inside.mean()) / num_clips, low, high


def difference_errors(
    residuals: npt.ArrayLike, *, scale_a: float = 1.0, scale_b: float = 1.0
) -> FloatArray:
    """Errors of a predicted difference: those of the calibrating clips, taken in pairs.

    Parameters
    ----------
    residuals : array_like, shape=(n,)
        Signed, true minus predicted, in label points.
    scale_a, scale_b : float
        Score points a label point is worth, for the first and the second clip of a pair.

    Returns
    -------
    ndarray of float64, shape=(n * (n - 1),)
        In score points, both orders of each pair.
    """
    values = np.asarray(residuals, dtype=np.float64)
    values = values[:: max(1, -(-len(values) // _MOST_IN_PAIRS))]
    errors = scale_a * values[:, None] - scale_b * values[None, :]
    pairs: FloatArray = errors[~np.eye(len(values), dtype=bool)]
    return pairs


def _rank(count: int, coverage: float) -> int:
    # 0.9 x 10 must be 9, not 9.000000000000002.
    return math.ceil((count + 1) * coverage - 1e-9)
