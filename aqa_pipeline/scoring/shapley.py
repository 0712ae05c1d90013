"""Shapley contribution of each snippet to the score of its clip.

Conventions
-----------
S
    Snippets of a clip.
average snippet
    The mean feature, over all training clips of the run, at the same place in the clip.
coalition
    A clip in which some snippets are the clip's own and the rest are average ones.
contribution : points
    Shapley value of a snippet: how much its own feature, put in the place of an average
    one, moves the score, averaged over every order in which the snippets can be put in.
    The contributions sum to the difference between the clip's score and that of a clip
    of average snippets alone. So does no list of plain occlusions: two snippets that say
    the same cover for each other, and each alone seems to count for nothing.

Scores are the run's own: all heads, all votes, Eq. 7-9. With ten snippets there are 1024
coalitions; where that many votes would take long, orders are drawn instead (Castro et al.,
"Polynomial calculation of the Shapley value based on sampling", 2009), each with its
reverse. The sum is exact either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import factorial

import numpy as np
import numpy.typing as npt
import torch

from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.errors import UsageError
from aqa_pipeline.heads.batch_voting import vote
from aqa_pipeline.runs.folder import Run

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Votes (coalitions x heads x exemplars) that are worth an exact answer: a second or two on two
#: cores with node features of 256.
MAX_VOTES = 20_000
_CLIPS_PER_PASS = 64  #: coalitions whose features are in memory at once


@dataclass(frozen=True, eq=False)
class Contributions:
    """What each snippet is worth.

    Attributes
    ----------
    points : ndarray of float64, shape=(S,)
        Sums to ``score - baseline``.
    standard_error : ndarray of float64, shape=(S,)
        Of the drawn orders, in points; 0 where the answer is exact.
    score : float
        Of the clip, in points.
    baseline : float
        Of a clip of average snippets with the same difficulty and exemplars, in points.
    num_orders : int
        Orders that were drawn; 0: the answer is exact.
    """

    points: FloatArray
    standard_error: FloatArray
    score: float
    baseline: float
    num_orders: int


def snippet_contributions(
    run: Run, clip: FeatureSet, exemplars: npt.ArrayLike, *, max_votes: int = MAX_VOTES
) -> Contributions:
    """Contribution of each snippet of a clip to its score.

    Parameters
    ----------
    run : Run
    clip : FeatureSet
        Of one clip.
    exemplars : array_like of int, shape=(M,)
        Positions in the run's exemplars that vote; none for a direct head.
    max_votes : int
        Beyond this many votes, orders are drawn until they are used up (at least 4).

    Raises
    ------
    UsageError
        If there is not exactly one clip, or a contrastive head has no exemplar.
    """
    rows = np.asarray(exemplars, dtype=np.int64)
    if len(clip) != 1:
        raise UsageError(f"contributions are those of one clip, not of {len(clip)}")
    if run.head.is_contrastive and not len(rows):
        raise UsageError("a contrastive head has no score without an exemplar")
    own = clip.features[0]  # (S, D)
    average = run.exemplars.features.mean(axis=0, dtype=np.float64).astype(np.float32)

    def score(is_own: npt.NDArray[np.bool_]) -> FloatArray:
        """Scores of coalitions, shape=(C,); ``is_own`` has shape (C, S)."""
        return _scores(run, clip, np.where(is_own[:, :, None], own, average), rows)

    num_snippets = len(own)
    votes = run.head.num_models * max(len(rows), 1)
    if 2**num_snippets * votes <= max_votes:
        points, ends = _exact(score, num_snippets)
        error, num_orders = np.zeros(num_snippets), 0
    else:
        num_orders = max(4, max_votes // (votes * (num_snippets + 1)) // 2 * 2)
        points, error, ends = _sampled(score, num_snippets, num_orders=num_orders)
    return Contributions(
        points=points,
        standard_error=error,
        score=float(ends[1]),
        baseline=float(ends[0]),
        num_orders=num_orders,
    )


def mean_contributions(parts: Sequence[Contributions]) -> Contributions:
    """Over the folds of a run, whose scores' mean is the prediction."""
    errors = np.array([part.standard_error for part in parts])
    return Contributions(
        points=np.mean([part.points for part in parts], axis=0),
        standard_error=np.sqrt(np.square(errors).sum(axis=0)) / len(parts),
        score=float(np.mean([part.score for part in parts])),
        baseline=float(np.mean([part.baseline for part in parts])),
        num_orders=sum(part.num_orders for part in parts),
    )


def _scores(
    run: Run, clip: FeatureSet, features: npt.NDArray[np.float32], rows: IntArray
) -> FloatArray:
    """Scores the run gives C variants of a clip, shape=(C,); features (C, S, D)."""
    device = run.head.device
    # Only the exemplars that vote go through the head.
    pool = torch.from_numpy(run.exemplars.features[rows]).to(device)
    pool_label = torch.from_numpy(run.exemplars.label[rows]).to(device)
    scores = np.empty(len(features))
    for start in range(0, len(features), _CLIPS_PER_PASS):
        part = features[start : start + _CLIPS_PER_PASS]
        votes = vote(
            run.head,
            queries=torch.from_numpy(part).to(device),
            pool=pool,
            pool_label=pool_label,
            exemplars=torch.arange(len(rows), device=device).expand(len(part), -1),
        )
        label = votes.mean().mean(axis=0)  # the run's prediction is the mean of its heads
        scores[start : start + len(part)] = clip.offset[0] + clip.scale[0] * label
    return scores


def _exact(
    score: Callable[[npt.NDArray[np.bool_]], FloatArray], num_snippets: int
) -> tuple[FloatArray, tuple[float, float]]:
    """Shapley's formula over all coalitions, and the scores of none and of all."""
    codes = np.arange(2**num_snippets)
    is_own = (codes[:, None] >> np.arange(num_snippets) & 1).astype(bool)  # (2^S, S)
    value = score(is_own)
    size = is_own.sum(axis=1)
    # The share of orders in which exactly this coalition comes before a given snippet.
    share = np.array(
        [
            factorial(n) * factorial(num_snippets - n - 1) / factorial(num_snippets)
            for n in range(num_snippets)
        ]
    )
    points = np.empty(num_snippets)
    for snippet in range(num_snippets):
        without = codes[~is_own[:, snippet]]
        gain = value[without | 1 << snippet] - value[without]
        points[snippet] = share[size[without]] @ gain
    return points, (value[0], value[-1])


def _sampled(
    score: Callable[[npt.NDArray[np.bool_]], FloatArray], num_snippets: int, *, num_orders: int
) -> tuple[FloatArray, FloatArray, tuple[float, float]]:
    """Mean gain over drawn orders, its standard error, and the scores of none and of all."""
    rng = np.random.default_rng(0)
    orders: list[IntArray] = []
    for _ in range(num_orders // 2):
        order = rng.permutation(num_snippets)
        orders += [order, order[::-1]]
    coalitions = np.concatenate([_growing(order) for order in orders])
    distinct, place = np.unique(coalitions, axis=0, return_inverse=True)
    value = score(distinct)[place.reshape(num_orders, num_snippets + 1)]
    gains = np.empty((num_orders, num_snippets))
    for gain, order, steps in zip(gains, orders, value, strict=True):
        gain[order] = np.diff(steps)
    # An order and its reverse are not independent, their mean and another pair's are.
    pairs = gains.reshape(num_orders // 2, 2, num_snippets).mean(axis=1)
    error = pairs.std(axis=0, ddof=1) / np.sqrt(len(pairs))
    return gains.mean(axis=0), error, (value[0, 0], value[0, -1])


def _growing(order: Sequence[int] | IntArray) -> npt.NDArray[np.bool_]:
    """The coalitions of one order, from nobody to everybody, shape=(S + 1, S)."""
    rank = np.argsort(np.asarray(order))
    return rank[None, :] < np.arange(len(rank) + 1)[:, None]
