"""Agreement of predicted scores with the judges': rho, R-l2, intervals.

Conventions
-----------
score, prediction
    float, shape ``(K,)``, in points; one entry a clip.
rho
    Spearman's rank correlation, in -1..1 (Eq. 10).
R-l2
    Relative L2 distance (Eq. 11), as a plain number; tables print it times 100.

A metric that is not defined (one clip, constant predictions) is NaN with a warning in
the log, never an exception: one odd fold must not end a long run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from aqa_pipeline.errors import DataError

FloatArray = npt.NDArray[np.float64]
_log = logging.getLogger(__name__)


def _pair(scores: npt.ArrayLike, predictions: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    s = np.asarray(scores, dtype=np.float64)
    p = np.asarray(predictions, dtype=np.float64)
    if s.shape != p.shape or s.ndim != 1:
        raise DataError(
            f"scores {s.shape} and predictions {p.shape} must be two lists of one length"
        )
    return s, p


def spearman_rows(scores: FloatArray, predictions: FloatArray) -> FloatArray:
    """Rho of each row, shape=(B, K) -> (B,); NaN where a row is constant."""
    ranks = [stats.rankdata(rows, axis=1) for rows in (scores, predictions)]
    a, b = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    norm = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    product = (a * b).sum(axis=1)
    rho: FloatArray = np.divide(product, norm, out=np.full(len(norm), np.nan), where=norm > 0)
    return rho


def spearman(scores: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Spearman's rank correlation, ties given their mean rank (Eq. 10).

    Parameters
    ----------
    scores, predictions : array_like, shape=(K,)

    Returns
    -------
    float
        In -1..1; NaN (and a warning) when fewer than 2 clips or one side is constant.

    Raises
    ------
    DataError
        If they are not two lists of one length.
    """
    s, p = _pair(scores, predictions)
    if s.size < 2:
        _log.warning("Spearman's rho is not defined for %d clip(s)", s.size)
        return float("nan")
    rho = float(spearman_rows(s[None], p[None])[0])
    if np.isnan(rho):
        _log.warning("Spearman's rho is not defined: %s", _why_undefined(s, p))
    return rho


def _why_undefined(scores: FloatArray, predictions: FloatArray) -> str:
    for name, values in (("scores", scores), ("predictions", predictions)):
        missing = int(np.isnan(values).sum())
        if missing:
            return f"{missing} of {values.size} {name} are not a number"
    side = "predictions" if np.ptp(predictions) == 0 else "scores"
    return f"all {scores.size} {side} are equal"


def kendall_tau(scores: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Kendall's tau-b, in -1..1; NaN (and a warning) where Spearman's rho is not defined."""
    s, p = _pair(scores, predictions)
    if s.size < 2:
        _log.warning("Kendall's tau is not defined for %d clip(s)", s.size)
        return float("nan")
    tau = float(stats.kendalltau(s, p).statistic)
    if np.isnan(tau):
        _log.warning("Kendall's tau is not defined: %s", _why_undefined(s, p))
    return tau


def relative_l2(
    scores: npt.ArrayLike,
    predictions: npt.ArrayLike,
    *,
    score_range: npt.ArrayLike | None = None,
) -> float:
    """Relative L2 distance R-l2 (Eq. 11), not multiplied by 100.

    Parameters
    ----------
    scores, predictions : array_like, shape=(K,)
    score_range : float or array_like, shape=(K,), optional
        Highest minus lowest score of the action, in points, or of each clip's own action
        (:func:`class_ranges`). Default: of ``scores``, the evaluated set, as the published
        programs do.

    Returns
    -------
    float
        NaN (and a warning) when a range is 0, or without a clip.

    Raises
    ------
    DataError
        If scores and predictions are not two lists of one length.
    """
    s, p = _pair(scores, predictions)
    if score_range is None:
        score_range = np.ptp(s) if s.size else 0.0
    span = np.broadcast_to(np.asarray(score_range, dtype=np.float64), s.shape)
    if not s.size or not (span > 0).all():
        low, high = s.min(initial=np.inf), s.max(initial=-np.inf)
        _log.warning(
            "R-l2 is not defined: the scores have no range (lowest %g, highest %g)", low, high
        )
        return float("nan")
    return float(np.mean(((s - p) / span) ** 2))


def class_ranges(
    categories: Sequence[str], *, all_scores: npt.ArrayLike, all_categories: Sequence[str]
) -> FloatArray:
    """The range of scores of each clip's class, for R-l2.

    Parameters
    ----------
    categories : sequence of str, length K
        Of the evaluated clips.
    all_scores : array_like, shape=(N,)
        Of every clip of the data set, in points.
    all_categories : sequence of str, length N

    Returns
    -------
    ndarray of float64, shape=(K,)
        Highest minus lowest score of the class; 0 for a class nothing is known of.
    """
    scores = np.asarray(all_scores, dtype=np.float64)
    names = np.asarray(all_categories, dtype=object)
    width = {name: float(np.ptp(scores[names == name])) for name in set(all_categories)}
    return np.array([width.get(name, 0.0) for name in categories], dtype=np.float64)


def l2(scores: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Mean squared error, in squared points; NaN (and a warning) without a clip."""
    s, p = _pair(scores, predictions)
    if not s.size:
        _log.warning("the mean squared error is not defined for 0 clips")
        return float("nan")
    return float(np.mean((s - p) ** 2))


def fisher_mean(rhos: npt.ArrayLike) -> float:
    """Average of correlations through Fisher's z: ``tanh(mean(arctanh(rho)))`` (Sec. 4.1).

    Parameters
    ----------
    rhos : array_like, shape=(N,)
        NaN entries are left out, with a warning; exactly +-1 is taken as the nearest value
        whose z is finite.

    Returns
    -------
    float
        In -1..1; NaN without an entry.
    """
    values = np.atleast_1d(np.asarray(rhos, dtype=np.float64))
    missing = np.isnan(values)
    if missing.any():
        _log.warning(
            "%d of %d correlations are not defined and left out", missing.sum(), values.size
        )
        values = values[~missing]
    if not values.size:
        return float("nan")
    limit = np.nextafter(1.0, 0.0)
    return float(np.tanh(np.mean(np.arctanh(np.clip(values, -limit, limit)))))


def bootstrap_interval(
    scores: npt.ArrayLike,
    predictions: npt.ArrayLike,
    *,
    metric: Literal["rho", "relative_l2"] = "rho",
    num_resamples: int = 2000,
    score_range: npt.ArrayLike | None = None,
    coverage: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of rho or R-l2 over the clips.

    Parameters
    ----------
    scores : array_like, shape=(K,)
    predictions : array_like, shape=(K,) or (H, K)
        Of one head, or of H heads: then the interval is of the mean of their metrics, each
        resample of clips being used for all heads.
    metric : {"rho", "relative_l2"}
    num_resamples : int
    score_range : float or array_like, shape=(K,), optional
        Of R-l2, see :func:`relative_l2`; default: of each resample.
    coverage : float
        Share of resamples inside the interval.
    seed : int

    Returns
    -------
    low, high : float
        NaN when there are fewer than 2 clips, or no resample on which it is defined.
    """
    heads = np.atleast_2d(np.asarray(predictions, dtype=np.float64))
    pairs = [_pair(scores, head) for head in heads]
    count = len(pairs[0][0])
    if count < 2:
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, count, size=(num_resamples, count))
    if metric == "rho":
        rows = [spearman_rows(s[draws], p[draws]) for s, p in pairs]
    else:
        span = None
        if score_range is not None:
            span = np.broadcast_to(np.asarray(score_range, dtype=np.float64), count)[draws]
        rows = [_rows_relative_l2(s[draws], p[draws], span) for s, p in pairs]
    values = np.mean(rows, axis=0)
    if np.isnan(values).all():
        return float("nan"), float("nan")
    tail = (1 - coverage) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _rows_relative_l2(
    scores: FloatArray, predictions: FloatArray, span: FloatArray | None
) -> FloatArray:
    """R-l2 of each row, shape=(B, K) -> (B,); NaN where a range is 0."""
    if span is None:
        span = np.broadcast_to(np.ptp(scores, axis=1, keepdims=True), scores.shape)
    error = np.full(scores.shape, np.nan)
    np.divide(scores - predictions, span, out=error, where=span > 0)
    mean: FloatArray = np.mean(error**2, axis=1)
    return mean
