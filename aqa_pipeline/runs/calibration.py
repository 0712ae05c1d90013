"""Calibration of a run by its errors on held-out clips: ``calibration.csv`` and intervals.

A run predicts with the mean of K heads, each of which held a validation part out of its
training. A training clip that some heads held out is predicted by the mean of those heads, each
at an epoch that the clip had no part in choosing (:mod:`aqa_pipeline.training.validation`): as if
it were new, but by fewer heads than a new clip gets. So its error is, if anything, too large, and
the intervals hold a little more than they promise. (The jackknife+ after bootstrap of Kim, Xu and
Barber, NeurIPS 2020, forms residuals in this way.)

Residuals are counted in label points, that is score points divided by the clip's scale: a
dive of difficulty 3 may be off by twice as many points as one of 1.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from aqa_pipeline.atomic import atomic_path
from aqa_pipeline.config import ScoreConfig
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.errors import DataError
from aqa_pipeline.runs.conformal import (
    check_coverage,
    conformal_quantile,
    coverage_spread,
    fewest_residuals,
    residuals_for_own_group,
)

FloatArray = npt.NDArray[np.float64]

FILE_NAME = "calibration.csv"
_COLUMNS = ("clip_id", "score", "scale", "difficulty")
_HEAD = "prediction_head"


@dataclass(frozen=True, eq=False)
class Calibration:
    """Training clips predicted by heads that did not know them.

    Attributes
    ----------
    clip_id : tuple of str, length n
        Clips that at least one head held out.
    score : ndarray of float64, shape=(n,)
        True, in points.
    scale : ndarray of float64, shape=(n,)
        Score points a label point is worth.
    difficulty : ndarray of float64, shape=(n,)
        NaN where not given.
    per_head : ndarray of float64, shape=(K, n)
        What each head predicts, in points; NaN where it learned from the clip.
    """

    clip_id: tuple[str, ...]
    score: FloatArray
    scale: FloatArray
    difficulty: FloatArray
    per_head: FloatArray

    def __len__(self) -> int:
        return len(self.clip_id)

    @property
    def prediction(self) -> FloatArray:
        """Mean of the heads that held a clip out, shape=(n,), in points."""
        mean: FloatArray = np.nanmean(self.per_head, axis=0)
        return mean

    @property
    def residual(self) -> FloatArray:
        """True minus predicted, shape=(n,), in label points."""
        return (self.score - self.prediction) / self.scale


def held_out_clips(train: FeatureSet, rows: npt.ArrayLike, scores: npt.ArrayLike) -> Calibration:
    """The calibration of a fit.

    Parameters
    ----------
    train : FeatureSet
        The training split.
    rows : array_like of int, shape=(K, m)
        Positions of each head's held-out clips in it.
    scores : array_like, shape=(K, m)
        What each head predicts for them, in points; NaN for those that cannot be used.
    """
    held_out, predicted = np.asarray(rows, dtype=np.int64), np.asarray(scores, dtype=np.float64)
    table = np.full((len(held_out), len(train)), np.nan)
    for k, own in enumerate(held_out):
        table[k, own] = predicted[k]
    used = np.flatnonzero(~np.isnan(table).all(axis=0))
    return Calibration(
        clip_id=tuple(train.clip_id[i] for i in used),
        score=train.score[used],
        scale=train.scale[used],
        difficulty=train.difficulty[used],
        per_head=table[:, used],
    )


def write_calibration(folder: Path, calibration: Calibration | None) -> None:
    """Write ``calibration.csv``; remove an older one where there is nothing to write."""
    path = folder / FILE_NAME
    if calibration is None or not len(calibration):
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        _table(calibration).to_csv(temporary, index=False)


def _table(calibration: Calibration) -> pd.DataFrame:
    columns = {name: getattr(calibration, name) for name in _COLUMNS}
    heads = {f"{_HEAD}{k}": row for k, row in enumerate(calibration.per_head, start=1)}
    return pd.DataFrame({**columns, **heads})


def read_calibration(folder: Path) -> Calibration | None:
    """The calibration of a run folder; None where there is none.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        table = pd.read_csv(path, dtype={"clip_id": str}, keep_default_na=False, na_values=[""])
        heads = table.filter(regex=f"^{_HEAD}").to_numpy(dtype=float).T
        calibration = Calibration(
            clip_id=tuple(table["clip_id"].fillna("")),
            per_head=np.ascontiguousarray(heads),
            **{name: table[name].to_numpy(dtype=float) for name in _COLUMNS[1:]},
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: damaged ({type(error).__name__}: {error}); train the head again"
        ) from None
    if not len(heads) or np.isnan(heads).all(axis=0).any():
        raise DataError(f"{path}: a clip without any prediction; train the head again")
    return calibration


def merged(calibrations: Sequence[Calibration]) -> Calibration:
    """Several folds as one run of all their heads: a clip's prediction is the mean of those
    heads, of any fold, that held it out.
    """
    return reduce(_joined, calibrations)


def _joined(a: Calibration, b: Calibration) -> Calibration:
    row = {name: i for i, name in enumerate(a.clip_id)}
    new = [i for i, name in enumerate(b.clip_id) if name not in row]
    row |= {b.clip_id[i]: len(a) + n for n, i in enumerate(new)}
    table = np.full((len(a.per_head) + len(b.per_head), len(row)), np.nan)
    table[: len(a.per_head), : len(a)] = a.per_head
    table[len(a.per_head) :, [row[name] for name in b.clip_id]] = b.per_head
    return Calibration(
        clip_id=tuple(row),
        per_head=table,
        **{
            name: np.concatenate([getattr(a, name), getattr(b, name)[new]]) for name in _COLUMNS[1:]
        },
    )


@dataclass(frozen=True)
class HalfWidth:
    """Half of an interval, and who calibrated it.

    Attributes
    ----------
    points : float
        In score points; infinite where too few clips calibrate.
    num_clips : int
        Clips that calibrate.
    difficulty : float or None
        Only clips of this difficulty calibrate; None: all do.
    """

    points: float
    num_clips: int
    difficulty: float | None = None


class Intervals:
    """Half widths of a run's intervals.

    Clips of the same difficulty calibrate where there are enough of them
    (:func:`aqa_pipeline.runs.conformal.residuals_for_own_group`), else all clips do.

    Parameters
    ----------
    calibration : Calibration
    coverage : float
        Share of true scores that the intervals are meant to hold.

    Raises
    ------
    UsageError
        If the coverage is not between 0 and 1.
    """

    def __init__(self, calibration: Calibration, coverage: float) -> None:
        check_coverage(coverage)
        self.coverage = coverage
        size = np.abs(calibration.residual)
        self._all = conformal_quantile(size, coverage), len(size)
        self._own: dict[float, tuple[float, int]] = {}
        difficulties = np.round(calibration.difficulty, 6)
        for value in np.unique(difficulties[~np.isnan(difficulties)]).tolist():
            group = size[difficulties == value]
            if len(group) >= residuals_for_own_group(coverage):
                self._own[value] = conformal_quantile(group, coverage), len(group)

    def half_width(self, *, scale: float, difficulty: float) -> HalfWidth:
        """Of a clip with this scale and difficulty (NaN where not given)."""
        own = self._own.get(round(difficulty, 6)) if difficulty == difficulty else None
        quantile, count = own or self._all
        return HalfWidth(quantile * scale, count, difficulty if own else None)

    @property
    def fewest(self) -> int:
        """Calibrating clips from which on intervals are finite."""
        return fewest_residuals(self.coverage)


def measure_intervals(
    calibration: Calibration | None,
    clips: FeatureSet,
    predicted: FloatArray,
    *,
    coverage: float = ScoreConfig.coverage,
) -> dict[str, Any] | None:
    """How many true scores lie in a run's intervals, and how wide these are.

    Parameters
    ----------
    calibration : Calibration or None
        The run's.
    clips : FeatureSet
        With known scores.
    predicted : ndarray of float64, shape=(N,)
        Their predicted scores, in points.
    coverage : float

    Returns
    -------
    dict or None
        ``asked`` and ``reached`` coverage, the counts behind it, and ``expected_95``: the range
        that calibration and test draws alone would give
        (:func:`aqa_pipeline.runs.conformal.coverage_spread`). None where the run gives no interval.
    """
    if calibration is None or not len(clips):
        return None
    intervals = Intervals(calibration, coverage)
    halves = [
        intervals.half_width(scale=float(scale), difficulty=float(difficulty))
        for scale, difficulty in zip(clips.scale, clips.difficulty, strict=True)
    ]
    half = np.array([own.points for own in halves])
    if not np.isfinite(half).all():
        return None
    inside = int((np.abs(clips.score - predicted) <= half).sum())
    _, low, high = coverage_spread(
        num_residuals=len(calibration), num_clips=len(clips), coverage=coverage
    )
    return {
        "asked": coverage,
        "reached": inside / len(clips),
        "inside": inside,
        "num_test": len(clips),
        "expected_95": [low, high],
        "mean_width": float(2 * half.mean()),
        "calibrating_clips": len(calibration),
        "clips_with_own_difficulty": sum(own.difficulty is not None for own in halves),
    }


def interval_sentence(found: Mapping[str, Any]) -> str:
    """What :func:`measure_intervals`, or an average over parts, found, in words."""
    expected = ""
    if "expected_95" in found:
        low, high = (round(share * found["num_test"]) for share in found["expected_95"])
        expected = f", {low} to {high} expected"
    return (
        f"{100 * found['asked']:g} % intervals: {found['inside']} of {found['num_test']} test "
        f"scores inside ({100 * found['reached']:.0f} %{expected}), "
        f"{found['mean_width']:.1f} points wide on average"
    )
