"""Scoring queries by comparing them with exemplars and letting these vote (Eq. 8-9).

Each clip is projected once through both halves of the root layer; a pair then costs one
addition and its way through the tree (on a CPU, only the nodes that may hold its best leaf:
:mod:`aqa_pipeline.heads.leaf_search`). On a GPU as many pairs go at once as memory takes, and the
votes of all of them are read by the host at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.device import numbers_at_once
from aqa_pipeline.heads.head import Halves, Head, Regressor

#: Pairs, of all models, that go through the tree at once: bounds the memory of voting.
_PAIRS_PER_PASS = 4096
_PAIRS_PER_PASS_ON_GPU = 2**17
_NUMBERS_PER_PASS = 2**24  #: of standardised features
_NUMBERS_PER_PASS_ON_GPU = 2**27


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
    if not votes_on_host(head.device):
        pairs = vote_pairs(index.cpu().numpy(), head.device)
        there = votes_on_device(
            head, queries=queries, pool=pool, pool_label=pool_label, pairs=pairs
        )
        return Votes(*(votes.cpu().numpy() for votes in there))
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


class VotePairs(NamedTuple):
    """The pairs that vote, on the device.

    Attributes
    ----------
    shape : tuple of int
        K, Q, M.
    position : Tensor of int64, shape=(K, P)
        Where in the head's Q * M votes each pair stands; after the last one Q * M.
    query, exemplar : Tensor of int64, shape=(K, P)
        Positions in the queries and in the pool.
    """

    shape: tuple[int, int, int]
    position: Tensor
    query: Tensor
    exemplar: Tensor


def votes_on_host(device: torch.device) -> bool:
    """Whether votes are gathered pass by pass in the host's memory, as suits a CPU."""
    return device.type == "cpu"


def vote_pairs(exemplars: npt.NDArray[np.int64], device: torch.device) -> VotePairs:
    """The pairs of exemplars of shape (K, Q, M), -1 for none."""
    num_models, num_queries, width = exemplars.shape
    flat = exemplars.reshape(num_models, -1)
    present, length = _present(flat)
    exemplar = np.take_along_axis(flat, present, axis=1).clip(min=0)
    query = present // max(width, 1)
    # Shorter lists are filled up with pairs whose votes go to a place after the last one.
    filling = np.arange(present.shape[1]) >= np.array(length)[:, None]
    position = np.where(filling, num_queries * width, present)
    return VotePairs(
        (num_models, num_queries, width),
        *(torch.from_numpy(part).to(device) for part in (position, query, exemplar)),
    )


@torch.no_grad()
def votes_on_device(
    head: Head, *, queries: Tensor, pool: Tensor, pool_label: Tensor, pairs: VotePairs
) -> tuple[Tensor, Tensor]:
    """:func:`vote` without a word from the host.

    Returns
    -------
    label : Tensor of float64, shape=(K, Q, M)
    leaf : Tensor of int64, shape=(K, Q, M)
        As in :class:`Votes`.
    """
    num_models, num_queries, width = pairs.shape
    votes = num_queries * width
    label = pool_label.new_full((num_models, votes + 1), torch.nan)
    leaf = pairs.position.new_full((num_models, votes + 1), -1)
    count = pairs.position.shape[1]
    if count:
        query_half = _projected(head, queries).query  # (K, Q, H)
        exemplar_half = _projected(head, pool).exemplar  # (K, N, H)
        model = torch.arange(num_models, device=label.device).unsqueeze(1)
        per_pass = max(1, _pairs_at_once(head) // num_models)
        for start in range(0, count, per_pass):
            part = slice(start, start + per_pass)
            position, rows = pairs.position[:, part], pairs.exemplar[:, part]
            exemplar_label = pool_label[rows]  # (K, p)
            root = head.root(
                query_half[model, pairs.query[:, part]],
                exemplar_half[model, rows],
                exemplar_label,
            )
            delta, leaves = head.trunk.value(root)
            label.scatter_(1, position, exemplar_label + delta)
            leaf.scatter_(1, position, leaves)
    shape = pairs.shape
    return label[:, :votes].reshape(shape), leaf[:, :votes].reshape(shape)


def mean_votes(label: Tensor, blocks: Tensor) -> Tensor:
    """Means of some of the votes (Eq. 9), for several M at once.

    Parameters
    ----------
    label : Tensor of float64, shape=(K, Q, M)
        NaN where there is no vote.
    blocks : Tensor of bool, shape=(J, K, M)
        The columns of each block.

    Returns
    -------
    Tensor of float64, shape=(J, K, Q)
        NaN for a query without any vote in a block.
    """
    means = []
    for block in blocks:  # (K, M)
        counted = block.unsqueeze(1) & ~label.isnan()
        total = torch.where(counted, label, 0.0).sum(dim=2)
        means.append(total / counted.sum(dim=2))
    return torch.stack(means)


def _pairs_at_once(head: Head) -> int:
    config = head.config
    nodes = config.num_groups if config.kind == "gart" else 2
    # The widest layer of a whole tree, its parts after ReLU and in another order, and its input.
    numbers = 4 * nodes * config.hidden
    return max(
        _PAIRS_PER_PASS,
        numbers_at_once(
            head.device,
            on_cpu=_PAIRS_PER_PASS * numbers,
            on_gpu=_PAIRS_PER_PASS_ON_GPU * numbers,
        )
        // numbers,
    )


def _present(index: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Where each row has an exemplar, filled up to the longest list; and the lists' lengths."""
    lists = [np.flatnonzero(row >= 0) for row in index]
    longest = max(map(len, lists), default=0)
    filled = [np.pad(own, (0, longest - len(own))) for own in lists]
    return np.stack(filled), [len(own) for own in lists]


def _projected(head: Head, features: Tensor) -> Halves:
    """Both halves of many clips, some at a time: a stack standardises each clip K times."""
    clips = features.shape[-3]
    if votes_on_host(features.device):
        at_once, clip = _NUMBERS_PER_PASS, features[..., :1, :, :].numel()
    else:
        at_once = numbers_at_once(
            features.device, on_cpu=_NUMBERS_PER_PASS, on_gpu=_NUMBERS_PER_PASS_ON_GPU
        )
        clip = features.shape[-2] * features.shape[-1]
    per_pass = max(1, at_once // (head.num_models * clip))
    parts = [
        head.halves(features[..., start : start + per_pass, :, :])
        for start in range(0, clips, per_pass)
    ]
    return Halves(
        query=torch.cat([part.query for part in parts], dim=1),
        exemplar=torch.cat([part.exemplar for part in parts], dim=1),
    )
