"""Scoring queries by comparing them with exemplars and letting these vote (Eq. 8-9).

Each clip is projected once through both halves of the root layer; a pair then costs one
addition and its way through the tree (on a CPU, only the nodes that may hold its best leaf:
:mod:`aqa_pipeline.leaf_search`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.heads import Halves, Head, Regressor

#: Pairs, of all models, that go through the tree at once: bounds the memory of voting.
_PAIRS_PER_PASS = 4096
_NUMBERS_PER_PASS = 2**24  #: of standardised features


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
        own = slice(model, model + 1)
        return Votes(self.label[own, :, block], self.leaf[own, :, block])

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
    index = exemplars.expand(num_models, *exemplars.shape[-2:])
    shape = index.shape  # (K, Q, M)
    label = np.full(shape, np.nan).reshape(num_models, -1)
    leaf = np.full(shape, -1, dtype=np.int64).reshape(num_models, -1)
    flat = index.flatten(1)
    present, length = _present(flat.cpu().numpy())
    if not present.shape[1]:
        return Votes(label.reshape(shape), leaf.reshape(shape))
    query_half = _projected(head, queries).query  # (K, Q, H)
    exemplar_half = _projected(head, pool).exemplar  # (K, N, H)
    model = torch.arange(num_models, device=index.device).unsqueeze(1)
    per_pass = max(1, _PAIRS_PER_PASS // num_models)
    for start in range(0, present.shape[1], per_pass):
        places = present[:, start : start + per_pass]  # (K, p)
        position = torch.from_numpy(places).to(index.device)
        rows = flat.gather(1, position).clamp(min=0)
        exemplar_label = pool_label[rows]  # (K, p)
        root = head.root(
            query_half[model, position // shape[2]], exemplar_half[model, rows], exemplar_label
        )
        delta, leaves = head.trunk.value(root)
        predicted = (exemplar_label + delta).cpu().numpy()
        found = leaves.cpu().numpy()
        for k in range(num_models):
            real = max(0, min(length[k] - start, per_pass))
            label[k, places[k, :real]] = predicted[k, :real]
            leaf[k, places[k, :real]] = found[k, :real]
    return Votes(label.reshape(shape), leaf.reshape(shape))


def _present(index: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Where each row has an exemplar, filled up to the longest list; and the lists' lengths."""
    lists = [np.flatnonzero(row >= 0) for row in index]
    longest = max(map(len, lists))
    filled = [np.pad(own, (0, longest - len(own))) for own in lists]
    return np.stack(filled), [len(own) for own in lists]


def _projected(head: Head, features: Tensor) -> Halves:
    """Both halves of many clips, some at a time: a stack standardises each clip K times."""
    clips = features.shape[-3]
    per_pass = max(1, _NUMBERS_PER_PASS // (head.num_models * features[..., :1, :, :].numel()))
    parts = [
        head.halves(features[..., start : start + per_pass, :, :])
        for start in range(0, clips, per_pass)
    ]
    return Halves(
        query=torch.cat([part.query for part in parts], dim=1),
        exemplar=torch.cat([part.exemplar for part in parts], dim=1),
    )
