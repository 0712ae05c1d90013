"""Scoring queries by comparing them with exemplars and letting these vote (Eq. 8-9).

Each clip is projected once through both halves of the root layer; a pair then costs one
addition and the tree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.heads import Head, Regressor

#: Pairs that go through the tree at once: bounds the memory of voting with all exemplars.
_PAIRS_PER_PASS = 2048


@dataclass(frozen=True, eq=False)
class Votes:
    """What each head and each exemplar say of each query.

    Attributes
    ----------
    label : ndarray of float64, shape=(K, Q, M)
        Predicted label of the query by each vote (Eq. 8), in label points; NaN where a
        query has fewer than M exemplars.
    leaf : ndarray of int64, shape=(K, Q, M)
        Leaf of the tree; -1 likewise, and for heads without a tree.
    """

    label: npt.NDArray[np.float64]
    leaf: npt.NDArray[np.int64]

    def columns(self, model: int, block: slice) -> Votes:
        """Some of the votes of one head."""
        return Votes(self.label[[model], :, block], self.leaf[[model], :, block])

    def mean(self) -> npt.NDArray[np.float64]:
        """Prediction of each head for each query (Eq. 9), shape=(K, Q), in label points.

        NaN for a query without any vote.
        """
        valid = ~np.isnan(self.label)
        total, count = np.where(valid, self.label, 0.0).sum(axis=2), valid.sum(axis=2)
        mean: npt.NDArray[np.float64] = np.divide(
            total, count, out=np.full(total.shape, np.nan), where=count > 0
        )
        return mean


def predict_labels(
    head: Regressor, *, queries: Tensor, pool: Tensor, pool_label: Tensor, exemplars: Tensor
) -> Votes:
    """Votes of a contrastive head; of a direct one, its one opinion, without exemplars.

    Parameters and errors as :func:`vote`.
    """
    if isinstance(head, Head) and head.is_contrastive:
        return vote(head, queries=queries, pool=pool, pool_label=pool_label, exemplars=exemplars)
    with torch.no_grad():
        label, leaf = head.direct_value(queries)
    return Votes(label.unsqueeze(2).cpu().numpy(), leaf.unsqueeze(2).cpu().numpy())


@torch.no_grad()
def vote(
    head: Head, *, queries: Tensor, pool: Tensor, pool_label: Tensor, exemplars: Tensor
) -> Votes:
    """Compare each query with its exemplars (contrastive heads).

    Parameters
    ----------
    head : Head
    queries : Tensor of float32, shape=(Q, S, D) or (K, Q, S, D)
        With a leading K each head has its own.
    pool : Tensor of float32, shape=(N, S, D)
    pool_label : Tensor of float64, shape=(N,)
        Labels of the pool, in label points.
    exemplars : Tensor of int64, shape=(Q, M) or (K, Q, M)
        Positions in the pool, -1 for none; with a leading K each head has its own.

    Returns
    -------
    Votes
    """
    num_models = head.num_models
    query_half = head.halves(queries).query  # (K, Q, H)
    exemplar_half = head.halves(pool).exemplar  # (K, N, H)
    index = exemplars.expand(num_models, *exemplars.shape[-2:])
    num_queries, num_votes = index.shape[1:]
    label = np.full((num_models, num_queries, num_votes), np.nan)
    leaf = np.full((num_models, num_queries, num_votes), -1, dtype=np.int64)
    if not num_votes:
        return Votes(label, leaf)
    model = torch.arange(num_models, device=index.device).unsqueeze(1)
    per_pass = max(1, _PAIRS_PER_PASS // num_votes)
    for start in range(0, num_queries, per_pass):
        part = slice(start, min(start + per_pass, num_queries))
        chosen = index[:, part].reshape(num_models, -1)  # (K, q * M)
        rows = chosen.clamp(min=0)
        exemplar_label = pool_label[rows]  # (K, q * M)
        root = head.root(
            query_half[:, part].repeat_interleave(num_votes, dim=1),
            exemplar_half[model, rows],
            exemplar_label,
        )
        delta, leaves = head.trunk.value(root)
        shape = (num_models, -1, num_votes)
        present = (chosen >= 0).view(shape).cpu().numpy()
        predicted = (exemplar_label + delta).view(shape).cpu().numpy()
        label[:, part] = np.where(present, predicted, np.nan)
        leaf[:, part] = np.where(present, leaves.view(shape).cpu().numpy(), -1)
    return Votes(label, leaf)
