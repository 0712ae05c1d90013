"""Votes on many clips at once: the quick form of the vote, for training and validation.

Each head may have queries and exemplars of its own. On a GPU as many pairs go at once as memory
takes, and all votes are read by the host at once. A matrix product over more pairs adds in another
order: what :class:`aqa_pipeline.heads.voting.ExemplarVoter` says is met to single precision.

Conventions as in :mod:`aqa_pipeline.heads.voting`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.device import numbers_at_once
from aqa_pipeline.heads.head import Halves, Head, Regressor
from aqa_pipeline.heads.voting import Votes, pair_votes

#: Pairs, of all models, that go through the tree at once: bounds the memory of voting.
_PAIRS_PER_PASS = 4096
_PAIRS_PER_PASS_ON_GPU = 2**17
_NUMBERS_PER_PASS = 2**24  #: of standardised features
_NUMBERS_PER_PASS_ON_GPU = 2**27


@torch.no_grad()
def vote(
    head: Regressor, *, queries: Tensor, pool: Tensor, pool_label: Tensor, exemplars: Tensor
) -> Votes:
    """Compare each query with its exemplars; of a direct head, its one opinion without them.

    Parameters
    ----------
    head : Regressor
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
    if not (isinstance(head, Head) and head.is_contrastive):
        label, leaf = (own.unsqueeze(2) for own in head.direct_value(queries))
    else:
        index = exemplars.expand(head.num_models, *exemplars.shape[-2:])  # (K, Q, M)
        pairs = vote_pairs(index.cpu().numpy(), head.device)
        label, leaf = votes_on_device(
            head, queries=queries, pool=pool, pool_label=pool_label, pairs=pairs
        )
    return Votes(label.cpu().numpy(), leaf.cpu().numpy())


class VotePairs(NamedTuple):
    """Pairs that vote, on the device.

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
    """Whether votes are counted by the host, as suits a CPU."""
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
    """Votes of contrastive heads as :func:`vote` gives them, left on the device.

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
            voted, leaves = pair_votes(
                head,
                query_half[model, pairs.query[:, part]],
                exemplar_half[model, rows],
                pool_label[rows],
            )
            label.scatter_(1, position, voted)
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
