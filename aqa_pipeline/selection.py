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
    num_exemplars : int or None, or a sequence of these
        M of Eq. 9. Several are judged from one training: every model by each of them.
    seeds : sequence of int, length K
        Of the exemplar draws.
    device : torch.device

    keep_states : bool
        False: only the numbers are kept, not the models; then :meth:`restore` must not be
        called.

    Attributes
    ----------
    Lists have an entry for each model; with several M, for each M of the first model, then of
    the second, and so on.

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
        num_exemplars: int | None | Sequence[int | None],
        seeds: Sequence[int],
        device: torch.device,
        keep_states: bool = True,
    ) -> None:
        self._head, self._judged = head, list(judged)
        # Condensed one by one: a stack's queries side by side may be too much at full length.
        self._queries = torch.stack(
            [head.condensed(torch.from_numpy(own.features).to(device)) for own in judged]
        )
        self._pool = head.condensed(torch.from_numpy(train.features).to(device))
        self._pool_label = torch.from_numpy(train.label).to(device)
        counts = list(num_exemplars) if isinstance(num_exemplars, Sequence) else [num_exemplars]
        chosen: list[list[IntArray]] = []
        for own, rows, seed in zip(judged, pools, seeds, strict=True):
            # A clip may be the only one of its group: then the nearest group votes.
            keys = ExemplarKeys.of([train.key[i] for i in rows])
            pool_groups, _ = keys.match([train.key[i] for i in rows])
            query_groups, _ = keys.match(own.key)
            local = [
                vote_exemplars(query_groups, pool_groups, num_exemplars=count, seed=seed)
                for count in counts
            ]
            chosen.append([np.where(own >= 0, rows[own], -1) for own in local])
        # The votes of one M stand in one block of columns, as wide as its longest vote.
        widths = [max(c[i].shape[1] for c in chosen) for i in range(len(counts))]
        padded = [
            np.concatenate(
                [
                    np.pad(c, ((0, 0), (0, width - c.shape[1])), constant_values=-1)
                    for c, width in zip(own, widths, strict=True)
                ],
                axis=1,
            )
            for own in chosen
        ]
        ends = np.cumsum(widths).tolist()
        self._blocks = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
        self._exemplars = torch.from_numpy(np.stack(padded)).to(device)
        num_judged = head.num_models * len(counts)
        self.best_rho = [math.nan] * num_judged
        self.best_relative_l2 = [math.nan] * num_judged
        self.best_epoch = [0] * num_judged
        self._best = copy.deepcopy(head.state_dict()) if keep_states else {}
        self.judged_scores: list[npt.NDArray[np.float64]] = []

    def keep(self, rows: Sequence[int]) -> None:
        """Judge these models alone from now on; the head is cut by the caller."""
        index = torch.tensor(rows, device=self._exemplars.device)
        self._judged = [self._judged[row] for row in rows]
        self._queries, self._exemplars = self._queries[index], self._exemplars[index]
        per_model = len(self._blocks)
        judged = [row * per_model + i for row in rows for i in range(per_model)]
        for name in ("best_rho", "best_relative_l2", "best_epoch"):
            values = getattr(self, name)
            setattr(self, name, [values[j] for j in judged])
        self._best = {name: value[index] for name, value in self._best.items()}
        self.judged_scores = [scores[judged] for scores in self.judged_scores]

    def keep_best(self, epoch: int) -> list[float]:
        """Judge every model; copy those that improved. Returns rho, one a model and M."""
        votes = predict_labels(
            self._head,
            queries=self._queries,
            pool=self._pool,
            pool_label=self._pool_label,
            exemplars=self._exemplars,
        )
        # A direct head has one opinion and no votes to choose from.
        blocks = self._blocks if self._head.is_contrastive else [slice(None)] * len(self._blocks)
        predicted = np.stack([votes.columns(block).mean() for block in blocks], axis=1)
        judges = [own for own in self._judged for _ in blocks]
        in_points = np.stack(
            [own.to_score(label) for own, label in zip(judges, np.concatenate(predicted), strict=True)]
        )
        self.judged_scores.append(in_points)
        state = self._head.state_dict() if self._best else {}
        rhos = []
        for k, own in enumerate(judges):
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
