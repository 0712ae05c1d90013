"""Which epoch of each model is kept.

The honest way judges on a validation part of the training split, with exemplars from the
clips that are fitted. The literature's way judges on the test split itself and reports the
best rho and the best R-l2 of all epochs apart: it is here to be compared with, and every
number that comes of it says so.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from aqa_pipeline.featureset import FeatureSet
from aqa_pipeline.heads import Head
from aqa_pipeline.metrics import relative_l2, spearman
from aqa_pipeline.pairs import ExemplarKeys, vote_exemplars
from aqa_pipeline.vote import predict_labels

IntArray = npt.NDArray[np.int64]


class Selection:
    """Keeps each model at the epoch with the best rho on the clips it is judged by.

    Parameters
    ----------
    head : Head
    judged : sequence of FeatureSet, length K
        Clips that judge each model; all of one length.
    train : FeatureSet
        The training split.
    pools : sequence of ndarray of int64, length K
        Clips of ``train`` that may be exemplars for each model.
    num_exemplars : int or None
        M of Eq. 9.
    seeds : sequence of int, length K
        Of the exemplar draws.
    device : torch.device

    Attributes
    ----------
    best_rho : list of float
    best_epoch : list of int
        1-based.
    best_relative_l2 : list of float
        Lowest R-l2 of any epoch, whichever it was.
    judged_scores : list of ndarray of float64, shape=(K, n)
        What each model predicted for its judging clips, in points, one array an epoch.
    """

    def __init__(
        self,
        head: Head,
        *,
        judged: Sequence[FeatureSet],
        train: FeatureSet,
        pools: Sequence[IntArray],
        num_exemplars: int | None,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        self._head, self._judged = head, judged
        self._queries = torch.from_numpy(np.stack([own.features for own in judged])).to(device)
        self._pool = torch.from_numpy(train.features).to(device)
        self._pool_label = torch.from_numpy(train.label).to(device)
        chosen = []
        for own, rows, seed in zip(judged, pools, seeds, strict=True):
            # A clip may be the only one of its group: then the nearest group votes.
            keys = ExemplarKeys.of([train.key[i] for i in rows])
            pool_groups, _ = keys.match([train.key[i] for i in rows])
            query_groups, _ = keys.match(own.key)
            local = vote_exemplars(
                query_groups, pool_groups, num_exemplars=num_exemplars, seed=seed
            )
            chosen.append(np.where(local >= 0, rows[local], -1))
        width = max(c.shape[1] for c in chosen)
        padded = [np.pad(c, ((0, 0), (0, width - c.shape[1])), constant_values=-1) for c in chosen]
        self._exemplars = torch.from_numpy(np.stack(padded)).to(device)
        self.best_rho = [math.nan] * head.num_models
        self.best_relative_l2 = [math.nan] * head.num_models
        self.best_epoch = [0] * head.num_models
        self._best = copy.deepcopy(head.state_dict())
        self.judged_scores: list[npt.NDArray[np.float64]] = []

    def keep_best(self, epoch: int) -> list[float]:
        """Judge every model; copy those that improved. Returns rho, one a model."""
        predicted = predict_labels(
            self._head,
            queries=self._queries,
            pool=self._pool,
            pool_label=self._pool_label,
            exemplars=self._exemplars,
        ).mean()
        state = self._head.state_dict()
        rhos = []
        in_points = np.stack([own.to_score(predicted[k]) for k, own in enumerate(self._judged)])
        self.judged_scores.append(in_points)
        for k, own in enumerate(self._judged):
            scores = in_points[k]
            rhos.append(spearman(own.score, scores))
            error = relative_l2(own.score, scores)
            if not error >= self.best_relative_l2[k]:
                self.best_relative_l2[k] = error
            # Where rho is not defined (all predictions equal) any later epoch is preferred.
            if rhos[k] > self.best_rho[k] or math.isnan(self.best_rho[k]):
                self.best_rho[k], self.best_epoch[k] = rhos[k], epoch
                for name, value in state.items():
                    self._best[name][k] = value[k]
        return rhos

    def restore(self) -> None:
        """Put every model back to its best epoch."""
        self._head.load_state_dict(self._best)
