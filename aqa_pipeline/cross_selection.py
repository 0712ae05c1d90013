"""Predictions of held-out clips at an epoch that they did not choose.

A head's validation part chooses its epoch, so its errors there are a little too small to say
how far off the head is on a new clip. Choosing once more without the clip removes that: the part
is cut into folds, the clips of the other folds choose an epoch, and the fold is predicted as the
head stood then. Nothing is trained again and the head that is kept is the one that the whole part
chose.

Conventions
-----------
E, K, n
    Epochs (or grid points), models, clips of a model's validation part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aqa_pipeline.core.metrics import spearman_rows

FloatArray = npt.NDArray[np.float64]

#: A part with fewer clips is left out one by one.
_FOLDS = 20


def cross_selected(
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
    if not count:  # the literature's way: nothing is held out
        return chosen
    num_folds = min(count, _FOLDS)
    for k, seed in enumerate(seeds):
        fold = np.random.default_rng([seed, 1]).permutation(count) % num_folds
        for number in range(num_folds):
            own, others = fold == number, fold != number
            if others.sum() < 2:
                continue
            judges = predicted[:, k, others]
            rho = spearman_rows(np.broadcast_to(truth[k, others], judges.shape), judges)
            epoch = int(np.argmax(np.nan_to_num(rho, nan=-2.0)))
            chosen[k, own] = predicted[epoch, k, own]
    return chosen
