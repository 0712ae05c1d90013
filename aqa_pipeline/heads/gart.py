"""The group-aware regression tree (GART), many of them side by side.

Conventions
-----------
K
    Models in the stack. Every parameter has this leading dimension, so that K heads
    train as one program; K = 1 is the plain case.
H, B, R
    Width of a node feature, pairs in the batch, groups (leaves).
root : Tensor, shape=(K, B, H)
    Feature of the root node, not negative. The width is the last dimension: with a batch of
    four pairs a product in this order takes a fifth of the time it takes in the other.

One layer is one batched matrix product: the decision (two logits) and both children's
features of a node are rows of the same weight.

Source: Sec. 3.2 and Eq. 6-7; official code: each inner node has its own 256 -> 2
decision and its own 256 -> 2 x 256 feature layer, each leaf its own 256 -> 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aqa_pipeline.config import Recipe
from aqa_pipeline.core.groups import DELTA_DECIMALS, Groups
from aqa_pipeline.errors import UsageError
from aqa_pipeline.heads.linear import stacked_linear
from aqa_pipeline.heads.quick import quick_form


def uniform_parameter(
    shape: Sequence[int], *, fan_in: int, generators: Sequence[torch.Generator]
) -> nn.Parameter:
    """A stacked parameter drawn like ``torch.nn.Linear``: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    Model k draws from its own generator, so that a stack starts from the very numbers its
    models would start from alone.

    Parameters
    ----------
    shape : sequence of int
        Shape of one model's parameter; the result has shape ``(len(generators), *shape)``.
    """
    bound = 1 / math.sqrt(fan_in)
    draws = [torch.empty(*shape).uniform_(-bound, bound, generator=g) for g in generators]
    return nn.Parameter(torch.stack(draws))


@quick_form(stacked_linear)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for each of N layers side by side.

    Parameters
    ----------
    x : Tensor, shape=(N, B, I)
    weight : Tensor, shape=(N, O, I)
        Or with more leading dimensions, whose product is N.
    bias : Tensor, shape=(N, O, 1), optional
        Leading dimensions as the weight's.

    Returns
    -------
    Tensor, shape=(N, B, O)
    """
    out = x @ weight.flatten(0, -3).mT
    return out if bias is None else out + bias.flatten(0, -3).mT


class Leaves(NamedTuple):
    """What the tree says of each pair.

    Attributes
    ----------
    log_prob : Tensor, shape=(K, R, B)
        Log-probability of each leaf: the sum of the log-decisions along its path.
    offset : Tensor, shape=(K, R, B)
        Place inside each leaf's interval; in 0..1 only if the tree ends in a sigmoid.
    """

    log_prob: Tensor
    offset: Tensor


class Value(NamedTuple):
    """Predictions of an output layer.

    Attributes
    ----------
    target : Tensor of float64, shape=(K, B)
        Score difference of a pair, or label of a clip, in label points.
    leaf : Tensor of int64, shape=(K, B)
        Leaf of the tree it came from; -1 where there is no tree.
    """

    target: Tensor
    leaf: Tensor


class Gart(nn.Module):
    """A stack of K regression trees with R leaves each.

    Parameters
    ----------
    num_groups : int
        R, a power of two, 2 or more. The published program has 16 at "depth 5".
    hidden : int
        H; 256 in the paper.
    sigmoid : bool
        Map the offset through a sigmoid, as the paper says; the published program does not.
    generators : sequence of torch.Generator
        One a model.
    """

    def __init__(
        self,
        *,
        num_groups: int,
        hidden: int,
        sigmoid: bool,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        if num_groups < 2 or num_groups & (num_groups - 1):
            raise UsageError(f"num_groups is {num_groups}; a binary tree needs a power of two")
        self.num_groups, self.hidden, self.sigmoid = num_groups, hidden, sigmoid
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer in range(num_groups.bit_length() - 1):
            rows = 2 * hidden + 2  # left child, right child, decision
            for parameters, columns in ((self.weights, hidden), (self.biases, 1)):
                parameters.append(
                    uniform_parameter(
                        (2**layer, rows, columns), fan_in=hidden, generators=generators
                    )
                )
        self.leaf_weight = uniform_parameter(
            (num_groups, 1, hidden), fan_in=hidden, generators=generators
        )
        self.leaf_bias = uniform_parameter((num_groups, 1, 1), fan_in=hidden, generators=generators)

    def forward(self, root: Tensor) -> Leaves:
        """Leaf probabilities and offsets of each pair; ``root`` has shape (K, B, H)."""
        num_models, batch, hidden = root.shape
        nodes = root  # (K * n, B, H), n nodes in this layer
        log_prob = root.new_zeros(num_models, 1, 1)  # (K, n, B) from the second layer on
        for weight, bias in zip(self.weights, self.biases, strict=True):
            n = weight.shape[1]
            out = linear(nodes, weight, bias)  # (K * n, B, 2 H + 2)
            decision = out[:, :, 2 * hidden :].log_softmax(dim=2)  # (K * n, B, 2)
            decision = decision.view(num_models, n, batch, 2).transpose(2, 3)  # (K, n, 2, B)
            log_prob = (log_prob.unsqueeze(2) + decision).flatten(1, 2)  # (K, 2 n, B)
            children = out[:, :, : 2 * hidden].view(num_models * n, batch, 2, hidden)
            nodes = children.transpose(1, 2).relu().reshape(num_models * 2 * n, batch, hidden)
        offset = linear(nodes, self.leaf_weight, self.leaf_bias)  # (K * R, B, 1)
        offset = offset.view(num_models, self.num_groups, batch)  # (K, R, B)
        return Leaves(log_prob, offset.sigmoid() if self.sigmoid else offset)


class GroupTensors(nn.Module):
    """The groups of K models on the device: labels and predictions by gather.

    The same arithmetic as :class:`aqa_pipeline.core.groups.Groups`, tested equal to it.
    """

    edges: Tensor  # (K, R + 1) float64
    outer: Tensor  # (K, 2) int64: lowest and highest leaf that is not empty

    def __init__(self, groups: Sequence[Groups]) -> None:
        super().__init__()
        edges = torch.stack([torch.from_numpy(g.edges) for g in groups])
        outer = torch.tensor([g.outer_leaves for g in groups], dtype=torch.int64)
        self.register_buffer("edges", edges.double())
        self.register_buffer("outer", outer)

    def leaf_and_offset(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Labels of Eq. 6 for score differences.

        Parameters
        ----------
        delta : Tensor of float64, shape=(..., K, B)
            In label points.

        Returns
        -------
        leaf : Tensor of int64, shape=(..., K, B)
        offset : Tensor of float32, shape=(..., K, B), in 0..1
        """
        edges = self.edges.expand(*delta.shape[:-2], -1, -1).contiguous()
        delta = torch.round(delta, decimals=DELTA_DECIMALS).contiguous()
        up = torch.searchsorted(edges, delta, right=True)
        down = torch.searchsorted(edges, delta, right=False)
        leaf = torch.where(delta >= 0, up, down) - 1
        leaf = leaf.clamp(min=self.outer[:, :1], max=self.outer[:, 1:])
        left = edges.gather(-1, leaf)
        width = edges.gather(-1, leaf + 1) - left
        return leaf, ((delta - left) / width).clamp(0, 1).float()

    def delta(self, output: Leaves) -> Value:
        """Score difference of the most probable leaf that is not empty (Eq. 7)."""
        empty = ~self.reachable.unsqueeze(2)
        leaf = output.log_prob.masked_fill(empty, -math.inf).argmax(dim=1)
        offset = output.offset.gather(1, leaf.unsqueeze(1)).squeeze(1)
        return Value(self.at(leaf, offset), leaf)

    @property
    def reachable(self) -> Tensor:
        """Leaves that are not empty; bool, shape=(K, R)."""
        return self.edges.diff(dim=1) > 0

    def at(self, leaf: Tensor, offset: Tensor) -> Tensor:
        """Score difference at an offset in a leaf, in label points; shape=(K, B)."""
        left = self.edges.gather(1, leaf)
        width = self.edges.gather(1, leaf + 1) - left
        return left + offset.double() * width


def leaf_losses(
    output: Leaves, leaf: Tensor, offset: Tensor, *, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """Classification and regression loss of each model.

    ``default``
        The published classification, negative log-likelihood of the true leaf, and J_reg
        of Eq. 6, the squared error of the true leaf's offset, both as a mean over pairs.
    ``official``
        The same classification; the squared error as a mean within each leaf, *summed*
        over the leaves, as in the published program. In large batches that lets
        regression outweigh classification by up to R to 1.
    ``paper``
        Eq. 6 as printed: J_cls is a binary cross-entropy over every leaf, J_reg as above.

    Parameters
    ----------
    output : Leaves
    leaf : Tensor of int64, shape=(K, B)
    offset : Tensor of float32, shape=(K, B)
    recipe : {"default", "official", "paper"}

    Returns
    -------
    classification, regression : Tensor, shape=(K,)
    """
    index = leaf.unsqueeze(1)  # (K, 1, B)
    true_leaf = output.log_prob.gather(1, index).squeeze(1)  # (K, B)
    found = output.offset.gather(1, index).squeeze(1)  # (K, B)
    error = (found - offset).square()  # (K, B)
    if recipe != "paper":
        share = pair_shares(leaf, recipe=recipe, num_groups=output.log_prob.shape[1])
        return -true_leaf.mean(dim=1), (share * error).sum(dim=1)
    # log(1 - P) of every leaf; P = 1 is kept a float away from 1, as torch's own
    # cross-entropy does, so that a sure and wrong tree has a finite loss.
    others = torch.log1p(-output.log_prob.exp().clamp(max=1 - 1e-6))
    not_true = others.sum(dim=1) - others.gather(1, index).squeeze(1)
    return -(true_leaf + not_true).mean(dim=1), error.mean(dim=1)


def pair_shares(leaf: Tensor, *, recipe: Recipe, num_groups: int) -> Tensor:
    """Weight of each pair's squared error in :func:`leaf_losses`.

    Parameters
    ----------
    leaf : Tensor of int64, shape=(..., B)
    recipe : {"default", "official"}
    num_groups : int

    Returns
    -------
    Tensor of float32, shape=(..., B)
        1 / B; or, for ``official``, 1 by the number of the batch's pairs in that leaf.
    """
    ones = torch.ones(leaf.shape, device=leaf.device)
    if recipe == "official":
        count = ones.new_zeros(*leaf.shape[:-1], num_groups).scatter_add_(-1, leaf, ones)
        return 1 / count.gather(-1, leaf)
    return ones / leaf.shape[-1]
