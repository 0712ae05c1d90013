"""The tree's way to one known leaf: all that the loss of a labelled pair depends on.

In training the true leaf of a pair is known beforehand. Its log-probability is the sum of the
decisions on the way to it, and its place comes of the features on that way: one node in each
layer, of the 15 that a tree with 16 leaves has. The pairs of a node are put side by side,
every node's list filled up to the longest, and each layer is one batched matrix product over
the nodes. The gradient is written by hand, since autograd would fill and add whole weights
for every slice of them; tested equal to autograd on the whole tree.

Conventions as in :mod:`aqa_pipeline.gart`; n is the number of nodes of a layer, L the
number of layers, C the longest list of a node's pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aqa_pipeline.stacked_linear import (
    bias_gradient,
    gradient,
    stacked_product,
    weight_gradient,
)


def leaf_path(
    root: Tensor,
    leaf: Tensor,
    weights: Iterable[Tensor],
    biases: Iterable[Tensor],
    leaf_weight: Tensor,
    leaf_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """Log-probability and place (before any sigmoid) of the given leaves.

    Parameters
    ----------
    root : Tensor, shape=(K, B, H)
    leaf : Tensor of int64, shape=(K, B)
    weights, biases : iterable of Tensor, shape=(K, n, 2 H + 2, H) and (K, n, 2 H + 2, 1)
        One a layer; rows: left child, right child, decision.
    leaf_weight, leaf_bias : Tensor, shape=(K, R, 1, H) and (K, R, 1, 1)

    Returns
    -------
    log_prob, place : Tensor, shape=(K, B)
    """
    layers = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
    result: tuple[Tensor, Tensor] = _LeafPath.apply(  # type: ignore[no-untyped-call]
        root, leaf, leaf_weight, leaf_bias, *layers
    )
    return result


class _Places(NamedTuple):
    """Where each pair stands on its way down; the first dimension is the layer.

    Attributes
    ----------
    rows : Tensor of int64, shape=(L, K * B)
        In the nodes' lists: those of all models and nodes, each C long, one after another.
    right : Tensor of bool, shape=(L, K * B, 1)
        Whether the pair turns to the right child.
    longest : list of int, length L
        C.
    """

    rows: Tensor
    right: Tensor
    longest: list[int]


def _places(leaf: Tensor, num_layers: int) -> _Places:
    num_models, batch = leaf.shape
    in_order, order = leaf.sort(dim=1, stable=True)
    leaves = torch.arange(2**num_layers, device=leaf.device).expand(num_models, -1)
    first = torch.searchsorted(in_order, leaves.contiguous())  # (K, R)
    column = torch.arange(batch, device=leaf.device).expand(num_models, -1)
    position = torch.empty_like(order).scatter_(1, order, column)
    model = torch.arange(num_models, device=leaf.device).unsqueeze(1)
    levels = torch.arange(num_layers, 0, -1, device=leaf.device).view(-1, 1, 1)  # above the leaf
    node = leaf >> levels  # (L, K, B)
    first_leaf = (node << levels).transpose(0, 1).flatten(1)  # (K, L * B)
    start = first.gather(1, first_leaf).view(num_models, num_layers, batch).transpose(0, 1)
    within, list_number = position - start, model * (2**num_layers >> levels) + node
    right = ((leaf >> (levels - 1)) & 1).bool().view(num_layers, -1, 1)
    longest = within.flatten(1).amax(dim=1) + 1  # (L,)
    rows = (list_number * longest.view(-1, 1, 1) + within).flatten(1)  # (L, K * B)
    return _Places(rows, right, longest.tolist())


class _LeafPath(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        root: Tensor,
        leaf: Tensor,
        leaf_weight: Tensor,
        leaf_bias: Tensor,
        *layers: Tensor,
    ) -> tuple[Tensor, Tensor]:
        num_models, batch, hidden = root.shape
        weights, biases = layers[::2], layers[1::2]
        nodes = root.flatten(0, 1)  # (K * B, H)
        inputs, features, logits = [], [], []
        places = _places(leaf, len(weights))
        for row, right, longest, weight, bias in zip(*places, weights, biases, strict=True):
            lists = nodes.new_zeros(weight.shape[0] * weight.shape[1] * longest, hidden)
            lists = lists.index_copy_(0, row, nodes).view(-1, longest, hidden)  # (K * n, C, H)
            out = stacked_product(lists, weight, bias).flatten(0, 1).index_select(0, row)
            nodes = torch.where(right, out[:, hidden : 2 * hidden], out[:, :hidden]).clamp_(min=0)
            inputs.append(lists)
            features.append(nodes)
            logits.append(out[:, 2 * hidden :])
        ways = torch.stack(logits).log_softmax(dim=2)  # (L, K * B, 2)
        steps = ways.gather(2, places.right.long()).squeeze(2)  # (L, K * B)
        model = torch.arange(num_models, device=leaf.device).unsqueeze(1)
        leaf_row = (model * leaf_weight.shape[1] + leaf).flatten()
        weight_row = leaf_weight.flatten(0, 2).index_select(0, leaf_row)  # (K * B, H)
        place = (nodes * weight_row).sum(dim=1) + leaf_bias.flatten().index_select(0, leaf_row)
        ctx.places, ctx.shape = places, root.shape
        ctx.saved = leaf_row, weight_row, inputs, features, -torch.expm1(steps)
        ctx.parameters = leaf_weight, leaf_bias, weights, biases
        return steps.sum(dim=0).view(num_models, batch), place.view(num_models, batch)

    @staticmethod
    def backward(ctx: Any, log_prob_grad: Tensor, place_grad: Tensor) -> tuple[Tensor | None, ...]:
        leaf_row, weight_row, inputs, features, wrong_way = ctx.saved
        leaf_weight, leaf_bias, weights, biases = ctx.parameters
        hidden = ctx.shape[2]
        log_prob_grad, place_grad = log_prob_grad.flatten(), place_grad.reshape(-1, 1)

        def write_leaf_weight(out: Tensor) -> None:
            out.zero_().view(-1, hidden).index_add_(0, leaf_row, features[-1] * place_grad)

        def write_leaf_bias(out: Tensor) -> None:
            out.zero_().view(-1, 1).index_add_(0, leaf_row, place_grad)

        of_leaves = gradient(leaf_weight, write_leaf_weight), gradient(leaf_bias, write_leaf_bias)
        of_layers: list[Tensor | None] = []  # from the last layer up: bias, weight
        # Of both children and both decisions, that of the way taken has a gradient; and
        # d log_softmax is 1 - p for the way taken, p - 1 for the other.
        turns = torch.cat([~ctx.places.right, ctx.places.right], dim=2).to(weight_row.dtype)
        decisions = (log_prob_grad * wrong_way).unsqueeze(2) * (2 * turns - 1)  # (L, K * B, 2)
        grad = weight_row * place_grad  # (K * B, H)
        for layer in reversed(range(len(weights))):
            row, longest, weight = ctx.places.rows[layer], ctx.places.longest[layer], weights[layer]
            grad = torch.where(features[layer] > 0, grad, 0)
            children = (turns[layer].unsqueeze(2) * grad.unsqueeze(1)).flatten(1)  # (K * B, 2 H)
            of_pairs = torch.cat([children, decisions[layer]], dim=1)
            out_grad = grad.new_zeros(weight.shape[0] * weight.shape[1] * longest, 2 * hidden + 2)
            out_grad = out_grad.index_copy_(0, row, of_pairs).view(-1, longest, 2 * hidden + 2)
            grad = torch.bmm(out_grad, weight.flatten(0, 1)).flatten(0, 1).index_select(0, row)
            of_layers.append(bias_gradient(biases[layer], out_grad))
            of_layers.append(weight_gradient(weight, out_grad, inputs[layer]))
        return grad.view(ctx.shape), None, *of_leaves, *reversed(of_layers)
