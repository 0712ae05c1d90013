"""Validation parts of a training split, and cross-fitted predictions of them.

Conventions
-----------
K
    Heads, one a seed; each has a validation part of its own.
E, n
    Epochs (or grid points), clips of a head's validation part.
fit part, validation part
    The training split cut in two: by single clips, stratified by score; or, where the test
    split has none of the training videos, by whole videos, so that a head is chosen as it
    will be tested.

A head's validation part chooses its epoch, so its errors there are a little too small to say
how far off the head is on a new clip. Choosing once more without the clip removes that
(:func:`cross_fitted`): the part is cut into folds, the clips of the other folds choose an epoch,
and the fold is predicted as the head stood then. Nothing is trained again and the head that is
kept is the one that the whole part chose.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from aqa_pipeline.config import FitConfig
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.metrics import spearman_rows
from aqa_pipeline.datasets.split import draw_groups
from aqa_pipeline.errors import DataError

_log = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

#: Whole videos are held out if they are at most this many times the clips asked for; else too
#: little would be left to learn from.
_MOST_TOO_MANY = 2.0

#: Few, so that heads of different seeds hold out different videos.
_DRAWS_OF_VIDEOS = 4

#: A part with fewer clips is left out one by one.
_FOLDS = 20


class ValidationSplit(NamedTuple):
    """What each of K models learns from and is chosen by.

    Attributes
    ----------
    fit : ndarray of int64, shape=(K, n)
        Rows of the training split to learn from.
    held_out : ndarray of int64, shape=(K, m)
        Of the others; m = 0 in test-set model selection.
    validation : list of FeatureSet
        Clips that choose the epoch: those held out, or the test split.
    """

    fit: IntArray
    held_out: IntArray
    validation: list[FeatureSet]


def hold_out(train: FeatureSet, config: FitConfig, test: FeatureSet | None) -> ValidationSplit:
    """Hold out a validation part for each model, or nothing if the test split chooses.

    Parameters
    ----------
    train : FeatureSet
        With ``video``, whole videos are held out, unless they are so long that more than
        twice the clips asked for would be.
    config : FitConfig
    test : FeatureSet, optional
        Only for test-set model selection.

    Raises
    ------
    DataError
        As :func:`validation_rows`.
    """
    seeds = [config.seed + k for k in range(config.num_seeds)]
    everything = np.arange(len(train))
    if test is not None:
        nothing = np.empty((len(seeds), 0), dtype=np.int64)
        return ValidationSplit(np.stack([everything] * len(seeds)), nothing, [test] * len(seeds))
    fraction = config.validation_fraction
    parts = [validation_rows(train.score, fraction=fraction, seed=seed) for seed in seeds]
    videos = _whole_videos(train, config, seeds)
    if videos is not None:
        return _evened(train, videos, seeds)
    if train.video is not None:
        _log.warning(
            "the validation part is of single clips, though the test split is of other videos: "
            "whole videos would take more than %g times the part asked for",
            _MOST_TOO_MANY,
        )
    fit = np.stack([np.setdiff1d(everything, rows) for rows in parts])
    return ValidationSplit(fit, np.stack(parts), [train.take(rows) for rows in parts])


def validation_unit(
    train: FeatureSet, config: FitConfig
) -> Literal["single clips", "whole videos"]:
    """What :func:`hold_out` holds out."""
    seeds = [config.seed + k for k in range(config.num_seeds)]
    return "whole videos" if _whole_videos(train, config, seeds) else "single clips"


def validation_rows(scores: npt.ArrayLike, *, fraction: float, seed: int) -> IntArray:
    """A seeded validation part of single clips, stratified by score.

    The clips are ranked by score and cut into as many runs as clips are wanted; one is
    drawn from each run, so that the part spans the scores as the whole does.

    Returns
    -------
    ndarray of int64, shape=(round(fraction * N),), ascending

    Raises
    ------
    DataError
        If fewer than 2 clips would be left on either side.
    """
    scores = np.asarray(scores, dtype=np.float64)
    count = round(fraction * len(scores))
    if count < 2 or len(scores) - count < 2:
        raise DataError(
            f"{len(scores)} training clips are too few to hold out {fraction:g} of them for "
            "validation: at least 2 are needed on each side"
        )
    rng = np.random.default_rng([seed, 0])
    # Ties are shuffled, else equal scores would be held out in file order.
    order = np.lexsort((rng.random(len(scores)), scores))
    return np.sort([run[rng.integers(len(run))] for run in np.array_split(order, count)])


def validation_videos(
    scores: npt.ArrayLike, video: npt.ArrayLike, *, fraction: float, seed: int
) -> IntArray:
    """A seeded validation part of whole videos, of about the size asked for.

    Parameters
    ----------
    scores : array_like, shape=(N,)
    video : array_like of int, shape=(N,)
        Number of each clip's video, from 0; two videos or more.
    fraction : float
    seed : int

    Returns
    -------
    ndarray of int64, ascending
    """
    random = np.random.default_rng([seed, 0])
    drawn = draw_groups(video, scores, fraction=fraction, random=random, num_draws=_DRAWS_OF_VIDEOS)
    return np.flatnonzero(drawn)


def cross_fitted(
    predictions: npt.ArrayLike, scores: npt.ArrayLike, *, seeds: Sequence[int]
) -> FloatArray:
    """What each model predicts for its clips at the epoch that the others choose.

    Parameters
    ----------
    predictions : array_like, shape=(E, K, n)
        Of each epoch, in points.
    scores : array_like, shape=(K, n)
        True scores, in points.
    seeds : sequence of int, length K
        Draw the folds.

    Returns
    -------
    ndarray of float64, shape=(K, n)
        NaN where fewer than two other clips are left to choose by.
    """
    predicted = np.asarray(predictions, dtype=np.float64)
    truth = np.asarray(scores, dtype=np.float64)
    num_models, count = truth.shape
    chosen = np.full((num_models, count), np.nan)
    if not count:  # test-set model selection holds nothing out
        return chosen
    num_folds = min(count, _FOLDS)
    for k, seed in enumerate(seeds):
        fold = np.random.default_rng([seed, 1]).permutation(count) % num_folds
        for number in range(num_folds):
            own, others = fold == number, fold != number
            if others.sum() < 2:
                continue
            known = predicted[:, k, others]
            rho = spearman_rows(np.broadcast_to(truth[k, others], known.shape), known)
            epoch = int(np.argmax(np.nan_to_num(rho, nan=-2.0)))
            chosen[k, own] = predicted[epoch, k, own]
    return chosen


def _whole_videos(
    train: FeatureSet, config: FitConfig, seeds: Sequence[int]
) -> list[IntArray] | None:
    if train.video is None:
        return None
    fraction = config.validation_fraction
    parts = [
        validation_videos(train.score, train.video, fraction=fraction, seed=seed) for seed in seeds
    ]
    largest = max(len(part) for part in parts)
    return parts if largest <= _MOST_TOO_MANY * fraction * len(train) else None


def _evened(train: FeatureSet, parts: Sequence[IntArray], seeds: Sequence[int]) -> ValidationSplit:
    """Parts of unequal size as one array: what is over is in neither side of that model."""
    most = min(len(part) for part in parts)
    least = max(len(part) for part in parts)
    held_out, fit = [], []
    for part, seed in zip(parts, seeds, strict=True):
        random = np.random.default_rng([seed, 1])
        rest = np.setdiff1d(np.arange(len(train)), part)
        held_out.append(np.sort(random.choice(part, most, replace=False)))
        fit.append(np.sort(random.choice(rest, len(train) - least, replace=False)))
    return ValidationSplit(
        np.stack(fit), np.stack(held_out), [train.take(rows) for rows in held_out]
    )
