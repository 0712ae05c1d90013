"""Voting of exemplars: a clip is compared with each, and their mean is its score (Eq. 8-9).

A clip is projected once through both halves of the root layer; a pair then costs one addition and
its way through the tree. :class:`ExemplarVoter` scores clips one by one; many at once, as training
needs them: :mod:`aqa_pipeline.heads.batch_voting`.

Conventions
-----------
K, Q, M, P
    Heads, queries, exemplars of a query, pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.core.featureset import FeatureSet, Key
from aqa_pipeline.core.pairs import ExemplarKeys, vote_exemplars
from aqa_pipeline.errors import CacheError
from aqa_pipeline.heads.gart import Value
from aqa_pipeline.heads.head import Head, Regressor

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Pairs of each model that go through the tree at once: bounds the memory of a vote of all clips.
_PAIRS_PER_PASS = 2048


@dataclass(frozen=True, eq=False)
class Votes:
    """Votes of each exemplar on each query, by each head.

    Attributes
    ----------
    label : ndarray of float64, shape=(K, Q, M)
        Predicted label of the query by each vote (Eq. 8), in label points; NaN where a
        query has fewer than M exemplars.
    leaf : ndarray of int64, shape=(K, Q, M)
        Leaf of the tree; -1 likewise, and for heads without a tree.
    """

    label: FloatArray
    leaf: IntArray

    def columns(self, model: int, block: slice) -> Votes:
        """Some of the votes of one head."""
        own = slice(model, model + 1)
        return Votes(self.label[own, :, block], self.leaf[own, :, block])

    def mean(self) -> FloatArray:
        """Prediction of each head for each query (Eq. 9), shape=(K, Q), in label points.

        NaN for a query without any vote.
        """
        valid = ~np.isnan(self.label)
        total, count = np.where(valid, self.label, 0.0).sum(axis=2), valid.sum(axis=2)
        mean: FloatArray = np.divide(
            total, count, out=np.full(total.shape, np.nan), where=count > 0
        )
        return mean


def pair_votes(head: Head, query: Tensor, exemplar: Tensor, exemplar_label: Tensor) -> Value:
    """Votes of pairs: the exemplar's label plus the predicted difference (Eq. 4 and 8).

    Parameters
    ----------
    head : Head
    query, exemplar : Tensor, shape=(K, P, H)
        Halves of the root layer, see :meth:`aqa_pipeline.heads.head.Head.halves`.
    exemplar_label : Tensor of float64, shape=(K, P)
    """
    delta, leaf = head.output.value(head.root(query, exemplar, exemplar_label))
    return Value(exemplar_label + delta, leaf)


@dataclass(frozen=True, eq=False)
class ClipPrediction:
    """Prediction of a run for one clip.

    Attributes
    ----------
    exemplars : ndarray of int64, shape=(M,)
        Positions in the run's exemplars; none for a direct head.
    fallback : bool
        No exemplar has the clip's key (difficulty, ...); the nearest key voted.
    label : ndarray of float64, shape=(K, M)
        Each vote of each head (Eq. 8), in label points; of a direct head its one opinion.
    leaf : ndarray of int64, shape=(K, M)
        Leaf of the tree; -1 for heads without one.
    """

    exemplars: IntArray
    fallback: bool
    label: FloatArray
    leaf: IntArray

    def mean(self) -> FloatArray:
        """Prediction of each head (Eq. 9), shape=(K,), in label points.

        Row by row: a sum over a padded table of many clips may add in another order.
        """
        return np.array([row.mean() for row in self.label])


@dataclass(frozen=True, eq=False)
class Predictions:
    """Scores predicted for Q clips by the K heads of a run.

    Attributes
    ----------
    clips : FeatureSet
    per_head : ndarray of float64, shape=(K, Q)
        In points.
    exemplars : ndarray of int64, shape=(Q, M)
        Positions in the run's exemplars, -1 for none.
    fallback : ndarray of bool, shape=(Q,)
        No exemplar has the clip's key (difficulty, ...); the nearest key voted.
    votes : Votes
    """

    clips: FeatureSet
    per_head: FloatArray
    exemplars: IntArray
    fallback: npt.NDArray[np.bool_]
    votes: Votes

    @property
    def num_votes(self) -> IntArray:
        """Exemplars of each clip, shape=(Q,)."""
        count: IntArray = (self.exemplars >= 0).sum(axis=1)
        return count

    @property
    def score(self) -> FloatArray:
        """The run's prediction: the mean of its heads, shape=(Q,), in points."""
        # One clip after the other: a sum over a table may add in another order than a sum over
        # one of its columns.
        return np.array([own.mean() for own in np.ascontiguousarray(self.per_head.T)])


class ExemplarVoter:
    """Exemplars that vote on clips, and the heads that compare with them.

    Each clip goes through the heads on its own, so that its prediction is the same to the bit
    whichever clips are scored beside it: a matrix product over more columns adds in another order.
    The exemplars of a group are the same for all its clips
    (:func:`aqa_pipeline.core.pairs.vote_exemplars`), so they go through their half of the root
    layer once.

    Parameters
    ----------
    head : Regressor
    exemplars : FeatureSet
        Every clip that may vote.
    num_exemplars : int or None
        How many vote on a clip; None: all of its group.
    seed : int
        Of their draw.
    name : str
        Of the run, for errors.
    """

    def __init__(
        self,
        head: Regressor,
        exemplars: FeatureSet,
        *,
        num_exemplars: int | None,
        seed: int,
        name: str = "these heads",
    ) -> None:
        self._name = name
        self.head, self.exemplars = head, exemplars
        self._num_exemplars, self._seed = num_exemplars, seed
        self._keys = ExemplarKeys.of(exemplars.key)
        self._groups, _ = self._keys.match(exemplars.key)
        #: Group -> exemplar half (K, M, H) and label (K, M) of those who vote in it.
        self._encoded: dict[int, tuple[Tensor, Tensor]] = {}

    def exemplars_of(self, key: Key) -> tuple[IntArray, bool]:
        """Exemplars that vote on a clip, and whether its own key has none of them.

        Returns
        -------
        rows : ndarray of int64, shape=(M,)
            Positions in the run's exemplars.
        fallback : bool
        """
        group, fallback = self._keys.match([key])
        (rows,) = vote_exemplars(
            group, self._groups, num_exemplars=self._num_exemplars, seed=self._seed
        )
        return rows, bool(fallback[0])

    def predict(self, features: npt.NDArray[np.float32], key: Key) -> ClipPrediction:
        """Score one clip.

        Parameters
        ----------
        features : ndarray of float32, shape=(S, D)
        key : tuple
            Values of the exemplar key's columns.

        Raises
        ------
        CacheError
            If the features have another shape than those the head was trained on.
        """
        expected, found = self.exemplars.features.shape[1:], features.shape
        if expected != found:
            raise CacheError(
                f"{self._name}: the head was trained on {expected[0]} x {expected[1]} "
                f"features a clip, these clips have {found[0]} x {found[1]}"
            )
        rows, fallback = self.exemplars_of(key)
        head = self.head
        clip = torch.from_numpy(features[None]).to(head.device)  # (1, S, D)
        with torch.no_grad(), _one_thread(head.device):
            if isinstance(head, Head) and head.is_contrastive:
                label, leaf = self._compare(head, clip, rows)
            else:
                label, leaf = head.direct_value(clip)
        return ClipPrediction(rows, fallback, label.cpu().numpy(), leaf.cpu().numpy())

    def predict_clips(self, clips: FeatureSet) -> Predictions:
        """Score clips, each as :meth:`predict` does; the shorter votes are filled up."""
        own = [self.predict(*clip) for clip in zip(clips.features, clips.key, strict=True)]
        num_votes = max((len(clip.exemplars) for clip in own), default=0)
        num_models = self.head.num_models
        exemplars = np.full((len(clips), num_votes), -1, dtype=np.int64)
        shape = (num_models, len(clips), num_votes if self.head.is_contrastive else 1)
        label, leaf = np.full(shape, np.nan), np.full(shape, -1, dtype=np.int64)
        mean = np.full((num_models, len(clips)), np.nan)
        for i, clip in enumerate(own):
            exemplars[i, : len(clip.exemplars)] = clip.exemplars
            label[:, i, : clip.label.shape[1]] = clip.label
            leaf[:, i, : clip.leaf.shape[1]] = clip.leaf
            mean[:, i] = clip.mean()
        fallback = np.array([clip.fallback for clip in own], dtype=bool)
        return Predictions(clips, clips.to_score(mean), exemplars, fallback, Votes(label, leaf))

    def delta(
        self,
        query: npt.NDArray[np.float32],
        exemplar: npt.NDArray[np.float32],
        *,
        exemplar_label: float,
    ) -> FloatArray:
        """How much better each head finds one clip than another (contrastive heads).

        Parameters
        ----------
        query, exemplar : ndarray of float32, shape=(S, D)
        exemplar_label : float
            Known or predicted, in label points (Eq. 4 takes it as an input).

        Returns
        -------
        ndarray of float64, shape=(K,), in label points
        """
        head = self.head
        assert isinstance(head, Head)
        a, b = (torch.from_numpy(clip[None]).to(head.device) for clip in (query, exemplar))
        label = torch.full((head.num_models, 1), exemplar_label, dtype=torch.float64)
        with torch.no_grad(), _one_thread(head.device):
            root = head.root(head.halves(a).query, head.halves(b).exemplar, label.to(head.device))
            difference: FloatArray = head.output.value(root).target[:, 0].cpu().numpy()
        return difference

    def _compare(self, head: Head, clip: Tensor, rows: IntArray) -> tuple[Tensor, Tensor]:
        """Votes of the given exemplars on one clip: labels and leaves, (K, M) each."""
        half, label = self._encode(head, rows)
        query = head.halves(clip).query  # (K, 1, H)
        starts = range(0, len(rows), _PAIRS_PER_PASS)
        parts = [slice(start, start + _PAIRS_PER_PASS) for start in starts]
        votes = [
            pair_votes(head, query.expand(-1, len(rows[p]), -1), half[:, p], label[:, p])
            for p in parts
        ]
        labels, leaves = zip(*votes, strict=True)
        return torch.cat(labels, dim=1), torch.cat(leaves, dim=1)

    def _encode(self, head: Head, rows: IntArray) -> tuple[Tensor, Tensor]:
        group = int(self._groups[rows[0]])
        if group not in self._encoded:
            features = torch.from_numpy(self.exemplars.features[rows]).to(head.device)
            label = torch.from_numpy(self.exemplars.label[rows]).to(head.device)
            half = head.halves(features).exemplar
            self._encoded[group] = half, label.expand(head.num_models, -1)
        return self._encoded[group]


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """One thread on a CPU.

    The products of one clip are so small that more threads only wait for each other (20 ms a clip
    with one, 400 ms of two cores' time with two, where other programs run), and their number
    would be in the last digits.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
