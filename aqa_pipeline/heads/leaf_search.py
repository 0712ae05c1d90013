"""Quick form of the tree's prediction on a CPU: only leaves that may be the best.

A leaf's probability is a product along its way, so no leaf below a node is more probable than
the node. First every pair goes down greedily, always to the more probable child; the leaf it
ends in sets a bar. Then only those nodes are visited whose own probability is above the bar:
what is left out cannot hold the best leaf, so the answer is that of the whole tree.

Pairs are rows here, whatever model of the stack they belong to; the rows that turn to the same
child are one matrix product. Conventions as in :mod:`aqa_pipeline.heads.gart`; P is the number of
rows, n the number of nodes of a layer in one model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from aqa_pipeline.heads.gart import Value

if TYPE_CHECKING:
    from aqa_pipeline.heads.outputs import TreeOutput


class _Rows(NamedTuple):
    """Rows that stand at a node of one layer.

    Attributes
    ----------
    pair : Tensor of int64, shape=(P,)
        Which pair, of all models.
    node : Tensor of int64, shape=(P,)
        Node of all models: ``model * n + node``.
    log_prob : Tensor, shape=(P,)
    feature : Tensor, shape=(P, H)
    """

    pair: Tensor
    node: Tensor
    log_prob: Tensor
    feature: Tensor


def searched_value(output: TreeOutput, root: Tensor) -> Any:
    """Quick form of :meth:`aqa_pipeline.heads.outputs.TreeOutput.value`."""
    if root.device.type != "cpu" or torch.is_grad_enabled():
        return NotImplemented
    tree, groups = output.tree, output.groups
    leaf, offset = best_leaf(
        root,
        list(tree.weights),
        list(tree.biases),
        tree.leaf_weight,
        tree.leaf_bias,
        reachable=groups.reachable,
    )
    return Value(groups.at(leaf, offset.sigmoid() if tree.sigmoid else offset), leaf)


@torch.no_grad()
def best_leaf(
    root: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    leaf_weight: Tensor,
    leaf_bias: Tensor,
    *,
    reachable: Tensor,
) -> tuple[Tensor, Tensor]:
    """Most probable leaf that is not empty, and the offset (before any sigmoid) in it.

    Parameters
    ----------
    root : Tensor, shape=(K, B, H)
    weights, biases, leaf_weight, leaf_bias
        See :func:`aqa_pipeline.heads.leaf_paths.leaf_path_losses`.
    reachable : Tensor of bool, shape=(K, R)
        Leaves that are not empty; at least one a model.

    Returns
    -------
    leaf : Tensor of int64, shape=(K, B)
    offset : Tensor, shape=(K, B)
    """
    num_models, batch, _ = root.shape
    layers = list(zip(weights, biases, strict=True))
    pairs = torch.arange(num_models * batch, device=root.device)
    # Which children of each layer have a leaf below them that may be answered.
    open_nodes = [
        reachable.view(num_models, 2 ** (layer + 1), -1).any(dim=2).view(-1, 2)
        for layer in range(len(layers))
    ]
    rows = _Rows(pairs, pairs // batch, root.new_zeros(len(pairs)), root.flatten(0, 1))
    passed: list[tuple[_Rows, Tensor]] = []  # rows on the way down, and what was not taken
    for (weight, bias), is_open in zip(layers, open_nodes, strict=True):
        probable = _of_children(rows, weight, bias, is_open)  # (P, 2)
        side = probable.argmax(dim=1, keepdim=True)
        passed.append((rows, probable.scatter(1, side, -math.inf)))
        taken = torch.zeros_like(probable, dtype=torch.bool).scatter_(1, side, value=True)
        rows = _step(rows, probable, taken, weight, bias)
    bar = torch.empty_like(rows.log_prob).index_copy_(0, rows.pair, rows.log_prob)
    leaf, offset = torch.empty_like(pairs), torch.empty_like(bar)
    _answer(rows, leaf, offset, leaf_weight, leaf_bias)
    ahead: list[_Rows] = []  # nodes that may hold a better leaf
    for (weight, bias), is_open, others in zip(layers, open_nodes, passed, strict=True):
        known = [others, *((own, _of_children(own, weight, bias, is_open)) for own in ahead)]
        steps = [
            _step(own, probable, probable > bar[own.pair].unsqueeze(1), weight, bias)
            for own, probable in known
        ]
        ahead = [own for own in steps if len(own.pair)]
        if len(ahead) > 1:
            ahead = [_Rows(*(torch.cat(columns) for columns in zip(*ahead, strict=True)))]
    for better in ahead:
        order = better.log_prob.argsort(stable=True)
        last = _last_of_each(better.pair[order])
        best = _Rows(*(column[order[last]] for column in better))
        _answer(best, leaf, offset, leaf_weight, leaf_bias)
    return leaf.view(num_models, batch), offset.view(num_models, batch)


def _of_children(rows: _Rows, weight: Tensor, bias: Tensor, is_open: Tensor) -> Tensor:
    """Log-probabilities of both children, shape=(P, 2); minus infinity for empty subtrees."""
    hidden = rows.feature.shape[1]
    decision = weight[:, :, 2 * hidden :].flatten(0, 1), bias[:, :, 2 * hidden :, 0].flatten(0, 1)
    steps, order = _by_block(rows.feature, rows.node, *decision)
    logits = torch.empty_like(steps).index_copy_(0, order, steps)
    log_prob = rows.log_prob.unsqueeze(1) + logits.log_softmax(dim=1)
    return log_prob.masked_fill(~is_open[rows.node], -math.inf)


def _step(rows: _Rows, probable: Tensor, taken: Tensor, weight: Tensor, bias: Tensor) -> _Rows:
    """The children that are taken, bool of shape (P, 2), in the order of their nodes."""
    row, side = taken.nonzero(as_tuple=True)
    hidden = rows.feature.shape[1]
    child = 2 * rows.node[row] + side
    blocks = (
        weight[:, :, : 2 * hidden].view(*weight.shape[:2], 2, hidden, hidden),
        bias[:, :, : 2 * hidden, 0].view(*weight.shape[:2], 2, hidden),
    )
    feature, order = _by_block(rows.feature[row], child, *(block.flatten(0, 1) for block in blocks))
    return _Rows(
        rows.pair[row][order], child[order], probable[row, side][order], feature.clamp_(min=0)
    )


def _by_block(
    feature: Tensor, block: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """A linear layer for each row, chosen by its block, in the order of the blocks.

    Parameters
    ----------
    feature : Tensor, shape=(P, H)
    block : Tensor of int64, shape=(P,)
    weight, bias : Tensor, shape=(m, O, H) and (m, O), or (m, 2, O, H) and (m, 2, O)
        With a 2, block 2 i + j is the layer (i, j).

    Returns
    -------
    out : Tensor, shape=(P, O)
    order : Tensor of int64, shape=(P,)
        Which row of ``feature`` each row of ``out`` is.
    """
    order = block.argsort(stable=True)
    feature = feature[order]
    out = feature.new_empty(len(order), weight.shape[-2])
    paired = weight.ndim == 4
    ends = torch.bincount(block, minlength=1).cumsum(0).tolist()
    start = 0
    for number, end in enumerate(ends):
        if end > start:
            part, which = slice(start, end), divmod(number, 2) if paired else number
            torch.addmm(bias[which], feature[part], weight[which].T, out=out[part])
            start = end
    return out, order


def _last_of_each(values: Tensor) -> Tensor:
    """The last position of each distinct value."""
    distinct, inverse = torch.unique(values, return_inverse=True)
    positions = torch.arange(len(values), device=values.device)
    return torch.zeros_like(distinct).scatter_reduce_(0, inverse, positions, reduce="amax")


def _answer(
    rows: _Rows, leaf: Tensor, offset: Tensor, leaf_weight: Tensor, leaf_bias: Tensor
) -> None:
    """Write down leaf and offset of rows that have come to a leaf."""
    weight = leaf_weight.flatten(0, 2)[rows.node]  # (P, H)
    leaf[rows.pair] = rows.node % leaf_weight.shape[1]
    offset[rows.pair] = (rows.feature * weight).sum(dim=1) + leaf_bias.flatten()[rows.node]
