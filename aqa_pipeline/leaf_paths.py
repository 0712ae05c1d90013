"""The tree's way to one known leaf: all that the loss of a labelled pair depends on.

In training the true leaf of a pair is known beforehand. Its log-probability is the sum of the
decisions on the way to it, and its place comes of the features on that way: one node in each
layer, of the 15 that a tree with 16 leaves has. The pairs of a node are put side by side,
every node's list filled up to the longest, and each layer is one batched matrix product over
the nodes. The gradient is written by hand, since autograd would fill and add whole weights
for every slice of them; tested equal to autograd on the whole tree.

Conventions as in :mod:`aqa_pipeline.gart`; n is the number of nodes of a layer, C the longest
list of a node's pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from aqa_pipeline.stacked_linear import bias_gradient, gradient, weight_gradient


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


def _places(leaf: Tensor, num_layers: int) -> list[tuple[Tensor, Tensor, int]]:
    """For each layer: row of each pair in the nodes' lists, side it turns to, and C.

    Rows number the lists of all models and nodes, each C long, one after another.
    """
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
    side = ((leaf >> (levels - 1)) & 1).flatten(1)  # (L, K * B)
    longest = within.flatten(1).amax(dim=1) + 1  # (L,)
    row = (list_number * longest.view(-1, 1, 1) + within).flatten(1)  # (L, K * B)
    return list(zip(row.unbind(), side.unbind(), longest.tolist(), strict=True))


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
        log_prob = nodes.new_zeros(len(nodes))
        inputs, features, wrong_way = [], [], []
        places = _places(leaf, len(weights))
        for (row, side, longest), weight, bias in zip(places, weights, biases, strict=True):
            lists = nodes.new_zeros(weight.shape[0] * weight.shape[1] * longest, hidden)
            lists.index_copy_(0, row, nodes)
            lists = lists.view(-1, longest, hidden)  # (K * n, C, H)
            out = torch.baddbmm(bias.flatten(0, 1).mT, lists, weight.flatten(0, 1).mT)
            out = out.flatten(0, 1)  # (K * n * C, 2 H + 2)
            steps = out[:, 2 * hidden :][row].log_softmax(dim=1)  # (K * B, 2)
            step = steps.gather(1, side.unsqueeze(1)).squeeze(1)
            log_prob += step
            wrong_way.append(-torch.expm1(step))
            nodes = out[:, : 2 * hidden].view(len(out), 2, hidden)[row, side].clamp_(min=0)
            inputs.append(lists)
            features.append(nodes)
        model = torch.arange(num_models, device=leaf.device).unsqueeze(1)
        leaf_row = (model * leaf_weight.shape[1] + leaf).flatten()
        weight_row = leaf_weight.flatten(0, 2)[leaf_row]  # (K * B, H)
        place = (nodes * weight_row).sum(dim=1) + leaf_bias.flatten()[leaf_row]
        ctx.places, ctx.shape = places, root.shape
        ctx.saved = leaf_row, weight_row, inputs, features, wrong_way
        ctx.parameters = leaf_weight, leaf_bias, weights, biases
        return log_prob.view(num_models, batch), place.view(num_models, batch)

    @staticmethod
    def backward(ctx: Any, log_prob_grad: Tensor, place_grad: Tensor) -> tuple[Tensor | None, ...]:
        leaf_row, weight_row, inputs, features, wrong_way = ctx.saved
        leaf_weight, leaf_bias, weights, biases = ctx.parameters
        hidden = ctx.shape[2]
        log_prob_grad, place_grad = log_prob_grad.flatten(), place_grad.flatten()

        def write_leaf_weight(out: Tensor) -> None:
            of_pairs = features[-1] * place_grad.unsqueeze(1)
            out.zero_().view(-1, hidden).index_add_(0, leaf_row, of_pairs)

        def write_leaf_bias(out: Tensor) -> None:
            out.zero_().view(-1).index_add_(0, leaf_row, place_grad)

        of_leaves = gradient(leaf_weight, write_leaf_weight), gradient(leaf_bias, write_leaf_bias)
        of_layers: list[Tensor | None] = []  # from the last layer up: bias, weight
        grad = weight_row * place_grad.unsqueeze(1)  # (K * B, H)
        for layer in reversed(range(len(weights))):
            row, side, longest = ctx.places[layer]
            weight = weights[layer]
            grad = torch.where(features[layer] > 0, grad, 0)
            out_grad = grad.new_zeros(weight.shape[0] * weight.shape[1] * longest, 2 * hidden + 2)
            out_grad[:, : 2 * hidden].view(len(out_grad), 2, hidden)[row, side] = grad
            # d log_softmax: 1 - p for the way taken, p - 1 for the other.
            step = log_prob_grad * wrong_way[layer]
            turned = side.to(step.dtype) * 2 - 1
            out_grad[row, 2 * hidden] = -turned * step
            out_grad[row, 2 * hidden + 1] = turned * step
            out_grad = out_grad.view(-1, longest, 2 * hidden + 2)
            grad = torch.bmm(out_grad, weight.flatten(0, 1)).flatten(0, 1)[row]
            of_layers.append(bias_gradient(biases[layer], out_grad))
            of_layers.append(weight_gradient(weight, out_grad, inputs[layer]))
        return grad.view(ctx.shape), None, *of_leaves, *reversed(of_layers)
