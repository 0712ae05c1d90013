"""A fitted run made ready to score one clip after another.

Each clip goes through the head on its own. A matrix product over more columns adds in another
order, so a clip scored inside a batch of other clips could differ in the last digits from the
same clip scored alone. Here it cannot: evaluation and prediction are the same calls on arrays
of the same shapes.

On a CPU one thread does it: these products are so small that more threads only wait for each other
(20 ms a clip with one, 400 ms of two cores' time with two, where other programs run), and their
number would be in the last digits, too.

The exemplars of a group are the same for all its clips (:func:`aqa_pipeline.core.pairs.
vote_exemplars`), so they go through their half of the root layer once.
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
from aqa_pipeline.heads.head import Head, Regressor

#: Pairs that go through the tree at once: bounds the memory of a vote of all clips.
_PAIRS_PER_PASS = 2048


@dataclass(frozen=True, eq=False)
class ClipPrediction:
    """What a run says of one clip.

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

    exemplars: npt.NDArray[np.int64]
    fallback: bool
    label: npt.NDArray[np.float64]
    leaf: npt.NDArray[np.int64]

    def mean(self) -> npt.NDArray[np.float64]:
        """Prediction of each head (Eq. 9), shape=(K,), in label points.

        Row by row: a sum over a padded table of many clips may add in another order.
        """
        return np.array([row.mean() for row in self.label])


@dataclass(frozen=True, eq=False)
class _EncodedExemplars:
    """The exemplars of one group on the device: half (K, M, H), label (K, M)."""

    rows: npt.NDArray[np.int64]
    half: Tensor
    label: Tensor


class ExemplarVoter:
    """Exemplars that vote, encoded once, and the heads that compare with them.

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
        self._panels: dict[int, _EncodedExemplars] = {}

    def exemplars_of(self, key: Key) -> tuple[npt.NDArray[np.int64], bool]:
        """Exemplars that vote on a clip, and whether its own key has none of them.

        Returns
        -------
        rows : ndarray of int64, shape=(M,)
            Positions in the run's exemplars.
        fallback : bool
        """
        group, fallback = self._keys.match([key])
        rows = vote_exemplars(
            group,
            self._groups,
            num_exemplars=self._num_exemplars,
            seed=self._seed,
        )[0]
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
                label, leaf = _compare(head, clip, self._panel(rows))
            else:
                label, leaf = head.direct_value(clip)
        return ClipPrediction(rows, fallback, label.cpu().numpy(), leaf.cpu().numpy())

    def delta(
        self,
        query: npt.NDArray[np.float32],
        exemplar: npt.NDArray[np.float32],
        *,
        exemplar_label: float,
    ) -> npt.NDArray[np.float64]:
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
            difference: npt.NDArray[np.float64] = head.trunk.value(root)[0][:, 0].cpu().numpy()
        return difference

    def _panel(self, rows: npt.NDArray[np.int64]) -> _EncodedExemplars:
        group = int(self._groups[rows[0]])
        if group not in self._panels:
            head, pool = self.head, self.exemplars
            assert isinstance(head, Head)
            features = torch.from_numpy(pool.features[rows]).to(head.device)
            label = torch.from_numpy(pool.label[rows]).to(head.device)
            self._panels[group] = _EncodedExemplars(
                rows, head.halves(features).exemplar, label.expand(head.num_models, -1)
            )
        return self._panels[group]


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _compare(head: Head, clip: Tensor, panel: _EncodedExemplars) -> tuple[Tensor, Tensor]:
    """Votes of every exemplar of a panel on one clip: labels and leaves, (K, M) each."""
    query_half = head.halves(clip).query  # (K, 1, H)
    labels, leaves = [], []
    for start in range(0, len(panel.rows), _PAIRS_PER_PASS):
        part = slice(start, start + _PAIRS_PER_PASS)
        half, label = panel.half[:, part], panel.label[:, part]
        delta, leaf = head.trunk.value(
            head.root(query_half.expand(-1, half.shape[1], -1), half, label)
        )
        labels.append(label + delta)
        leaves.append(leaf)
    return torch.cat(labels, dim=1), torch.cat(leaves, dim=1)
