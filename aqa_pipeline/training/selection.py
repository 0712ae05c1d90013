"""Model selection: each model is kept at its best epoch.

By default models are evaluated on a validation part of the training split, with exemplars from
the clips that are fitted. Test-set model selection, as in published programs, evaluates them on
the test split itself and reports the best rho and the best R-l2 of all epochs apart: it is here
to be compared with, and every number that comes of it says so.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.metrics import relative_l2, spearman, spearman_rows
from aqa_pipeline.core.pairs import ExemplarKeys, vote_exemplars
from aqa_pipeline.heads.batch_voting import (
    VotePairs,
    mean_votes,
    vote,
    vote_pairs,
    votes_on_device,
    votes_on_host,
)
from aqa_pipeline.heads.head import Head

IntArray = npt.NDArray[np.int64]


class EpochSelection:
    """Keeps each model at the epoch with the best rho on its validation clips.

    Parameters
    ----------
    head : Head
    validation : sequence of FeatureSet, length K
        Clips that each model is evaluated on; all of one length.
    train : FeatureSet
        The training split.
    pools : sequence of ndarray of int64, length K
        Clips of ``train`` that may be exemplars for each model.
    num_exemplars : int or None, or a sequence of sequences of these
        M of Eq. 9; or, for each model, several M to evaluate it with.
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
    validation_scores : list of ndarray of float64, shape=(K, n)
        What each model predicted for its validation clips, in points, one array per epoch.
    """

    def __init__(
        self,
        head: Head,
        *,
        validation: Sequence[FeatureSet],
        train: FeatureSet,
        pools: Sequence[IntArray],
        num_exemplars: int | Sequence[Sequence[int | None]] | None,
        seeds: Sequence[int],
        device: torch.device,
        keep_states: bool = True,
    ) -> None:
        self._head, self._validation = head, list(validation)
        # Condensed one by one: a stack's queries side by side may be too much at full length.
        self._queries = torch.stack(
            [head.condensed(torch.from_numpy(own.features).to(device)) for own in validation]
        )
        self._pool = head.condensed(torch.from_numpy(train.features).to(device))
        self._pool_label = torch.from_numpy(train.label).to(device)
        if num_exemplars is None or isinstance(num_exemplars, int):
            num_exemplars = [[num_exemplars]] * head.num_models
        votes: list[IntArray] = []  # columns of all M of a model, side by side
        self._blocks: list[list[slice]] = []  # where each M's columns stand
        for own, rows, seed, counts in zip(validation, pools, seeds, num_exemplars, strict=True):
            # A clip may be the only one of its group: then the nearest group votes.
            keys = ExemplarKeys.of([train.key[i] for i in rows])
            pool_groups, _ = keys.match([train.key[i] for i in rows])
            query_groups, _ = keys.match(own.key)
            chosen = [
                vote_exemplars(query_groups, pool_groups, num_exemplars=count, seed=seed)
                for count in counts
            ]
            ends = np.cumsum([one.shape[1] for one in chosen]).tolist()
            self._blocks.append(
                [slice(end - one.shape[1], end) for end, one in zip(ends, chosen, strict=True)]
            )
            local = np.concatenate(chosen, axis=1)
            votes.append(np.where(local >= 0, rows[local], -1))
        width = max(v.shape[1] for v in votes)
        padded = [np.pad(v, ((0, 0), (0, width - v.shape[1])), constant_values=-1) for v in votes]
        self._chosen = np.stack(padded)  # (K, n, M)
        self._pairs: VotePairs | None = None  # of votes on the device, once they are listed
        self._columns: Tensor | None = None  # bool, (J, K, M): of each M, at most J of them
        num_votes = sum(map(len, self._blocks))
        self.best_rho = [math.nan] * num_votes
        self.best_relative_l2 = [math.nan] * num_votes
        self.best_epoch = [0] * num_votes
        self._best = copy.deepcopy(head.state_dict()) if keep_states else {}
        self.validation_scores: list[npt.NDArray[np.float64]] = []

    def keep(self, rows: Sequence[int]) -> None:
        """Evaluate these models alone from now on; the head is cut by the caller."""
        index = torch.tensor(rows, device=self._pool.device)
        self._validation = [self._validation[row] for row in rows]
        self._queries, self._chosen = self._queries[index], self._chosen[list(rows)]
        first = np.cumsum([0, *map(len, self._blocks)]).tolist()
        kept = [j for row in rows for j in range(first[row], first[row + 1])]
        self._blocks = [self._blocks[row] for row in rows]
        self._pairs = self._columns = None
        for name in ("best_rho", "best_relative_l2", "best_epoch"):
            values = getattr(self, name)
            setattr(self, name, [values[j] for j in kept])
        self._best = {name: value[index] for name, value in self._best.items()}
        self.validation_scores = [scores[kept] for scores in self.validation_scores]

    def update(self, epoch: int) -> list[float]:
        """Evaluate every model and keep those that improved; returns rho, one per model and M."""
        clips = [
            own for own, blocks in zip(self._validation, self._blocks, strict=True) for _ in blocks
        ]
        labels = self._labels()
        points = [own.to_score(label) for own, label in zip(clips, labels, strict=True)]
        in_points = np.stack(points)
        self.validation_scores.append(in_points)
        # All rows at once: one after another they would take longer than a GPU takes for them.
        true = np.stack([own.score for own in clips])
        rhos: list[float] = spearman_rows(true, in_points).tolist()
        improved = []
        for k, own in enumerate(clips):
            scores = in_points[k]
            if math.isnan(rhos[k]):
                rhos[k] = spearman(own.score, scores)  # says in the log why
            error = relative_l2(own.score, scores)
            if not error >= self.best_relative_l2[k]:
                self.best_relative_l2[k] = error
            # Where rho is not defined (all predictions equal) any later epoch is preferred.
            if rhos[k] > self.best_rho[k] or math.isnan(self.best_rho[k]):
                self.best_rho[k], self.best_epoch[k] = rhos[k], epoch
                improved.append(k)
        self._copy(improved)
        return rhos

    def _labels(self) -> list[npt.NDArray[np.float64]]:
        """What each model, and each M of it, predicts for its clips; shape=(n,) each."""
        if not votes_on_host(self._pool.device):
            there = self.labels_on_device().cpu().numpy()  # (J, K, n); all that the host reads
            return [there[j, k] for k, own in enumerate(self._blocks) for j in range(len(own))]
        votes = vote(
            self._head,
            queries=self._queries,
            pool=self._pool,
            pool_label=self._pool_label,
            exemplars=torch.from_numpy(self._chosen),
        )
        # A direct head has one opinion and no votes to choose from.
        contrastive = self._head.is_contrastive
        return [
            votes.columns(k, block if contrastive else slice(None)).mean()[0]
            for k, blocks in enumerate(self._blocks)
            for block in blocks
        ]

    def labels_on_device(self) -> Tensor:
        """Every model's predictions by each M, without a transfer to the host; (J, K, n).

        J is the largest number of M that a model is evaluated with; a model with fewer has the
        first ones.
        """
        most = max(map(len, self._blocks))
        if not self._head.is_contrastive:
            with torch.no_grad():
                return self._head.direct_value(self._queries).target.expand(most, -1, -1)
        if self._pairs is None or self._columns is None:
            self._pairs = vote_pairs(self._chosen, self._pool.device)
            columns = np.zeros((most, *self._chosen.shape[::2]), dtype=bool)
            for k, blocks in enumerate(self._blocks):
                for j, block in enumerate(blocks):
                    columns[j, k, block] = True
            self._columns = torch.from_numpy(columns).to(self._pool.device)
        label, _ = votes_on_device(
            self._head,
            queries=self._queries,
            pool=self._pool,
            pool_label=self._pool_label,
            pairs=self._pairs,
        )
        return mean_votes(label, self._columns)

    def _copy(self, models: Sequence[int]) -> None:
        """Keep the weights of some models as they are now."""
        if not self._best or not models:
            return
        if self._pool.device.type == "cpu":
            for name, value in self._head.state_dict().items():
                for k in models:
                    self._best[name][k] = value[k]
            return
        index = torch.tensor(models, device=self._pool.device)
        for name, value in self._head.state_dict().items():
            self._best[name].index_copy_(0, index, value[index])

    def restore(self) -> None:
        """Put every model back to its best epoch."""
        self._head.load_state_dict(self._best)
