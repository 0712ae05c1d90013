"""Quick form of the tree's loss on a CPU: only the way to each pair's true leaf.

In training the true leaf of a pair is known beforehand. Its log-probability is the sum of the
decisions on the way to it, and its offset comes of the features on that way: one node in each
layer, of the 15 that a tree with 16 leaves has. In the order of their leaves the pairs of a
node stand side by side; every node's list is filled up to the longest, and each layer is one
batched matrix product over the nodes. Where each pair stands depends on the labels alone, so
that it is found for many steps at once. The gradient is written by hand, since autograd would
fill and add whole weights for every slice of them; tested equal to autograd on the whole tree.

Conventions as in :mod:`aqa_pipeline.heads.gart`; n is the number of nodes of a layer, L the
number of layers, C the longest list of a node's pairs, T the number of steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from aqa_pipeline.heads.gart import pair_shares
from aqa_pipeline.heads.linear import bias_gradient, gradient, stacked_product, weight_gradient

if TYPE_CHECKING:
    from aqa_pipeline.heads.outputs import TreeOutput


class LeafPaths(NamedTuple):
    """The ways of one batch's pairs to their leaves.

    The pairs of all models stand one after another, those of a model in the order of their
    leaves.

    Attributes
    ----------
    order : Tensor of int64, shape=(K * B,)
        Which column of the batch each pair is.
    leaf_row : Tensor of int64, shape=(K * B,)
        The pair's leaf among those of all models.
    offset : Tensor, shape=(K * B,)
        Where in its leaf's interval the pair lies.
    share : Tensor, shape=(K * B,)
        Weight of the pair's squared error in its model's loss.
    turn : Tensor of int64, shape=(L, K * B, 1)
        Child that the pair turns to: 0 is the left one, 1 the right one.
    side : Tensor, shape=(L, K * B, 2)
        1 for that child, 0 for the other.
    rows : sequence of Tensor of int64, length L, shape=(K * B,)
        Where the pair stands in the nodes' lists: those of all models and nodes, each C long,
        one after another.
    longest : sequence of int, length L
        C.
    """

    order: Tensor
    leaf_row: Tensor
    offset: Tensor
    share: Tensor
    turn: Tensor
    side: Tensor
    rows: Sequence[Tensor]
    longest: Sequence[int]


def paths_to_leaves(output: TreeOutput, target: Tensor) -> Any:
    """Quick form of :meth:`aqa_pipeline.heads.outputs.TreeOutput.labels`."""
    # The printed loss looks at wrong leaves, too; and on a GPU the whole tree is computed,
    # whose shapes do not depend on the labels.
    if output.recipe == "paper" or target.device.type != "cpu":
        return NotImplemented
    leaf, offset = output.groups.leaf_and_offset(target)
    share = pair_shares(leaf, recipe=output.recipe, num_groups=output.tree.num_groups)
    return leaf_paths(leaf, offset, share, num_layers=len(output.tree.weights))


def losses_on_paths(output: TreeOutput, root: Tensor, labels: Any) -> Any:
    """Quick form of :meth:`aqa_pipeline.heads.outputs.TreeOutput.losses`."""
    if not isinstance(labels, LeafPaths):
        return NotImplemented
    tree = output.tree
    return leaf_path_losses(
        root, labels, tree.weights, tree.biases, tree.leaf_weight, tree.leaf_bias
    )


def leaf_paths(leaf: Tensor, offset: Tensor, share: Tensor, num_layers: int) -> list[LeafPaths]:
    """The ways of T steps; all parameters have the shape (T, K, B)."""
    steps, num_models, batch = leaf.shape
    device, num_leaves = leaf.device, 2**num_layers
    leaf, order = leaf.sort(dim=2, stable=True)
    leaves = torch.arange(num_leaves, device=device).expand(steps, num_models, -1)
    first = torch.searchsorted(leaf, leaves.contiguous())  # (T, K, R)
    column = torch.arange(batch, device=device)
    model = torch.arange(num_models, device=device).unsqueeze(1)  # (K, 1)
    levels = torch.arange(num_layers, 0, -1, device=device).view(-1, 1, 1)  # above the leaf
    node = leaf.unsqueeze(1) >> levels  # (T, L, K, B)
    start = first.unsqueeze(1).expand(-1, num_layers, -1, -1).gather(3, node << levels)
    longest = (column - start).flatten(2).amax(dim=2) + 1  # (T, L)
    list_number = model * (num_leaves >> levels) + node
    rows = (list_number * longest[:, :, None, None] + column - start).flatten(2)  # (T, L, K * B)
    turn = ((leaf.unsqueeze(1) >> (levels - 1)) & 1).flatten(2).unsqueeze(3)  # (T, L, K * B, 1)
    of_steps = zip(
        (model * batch + order).flatten(1).unbind(),
        (model * num_leaves + leaf).flatten(1).unbind(),
        offset.gather(2, order).flatten(1).unbind(),
        share.gather(2, order).flatten(1).unbind(),
        turn.unbind(),
        torch.cat([1 - turn, turn], dim=3).to(offset.dtype).unbind(),
        [of_step.unbind() for of_step in rows.unbind()],
        longest.tolist(),
        strict=True,
    )
    return [LeafPaths(*one) for one in of_steps]


def leaf_path_losses(
    root: Tensor,
    paths: LeafPaths,
    weights: Iterable[Tensor],
    biases: Iterable[Tensor],
    leaf_weight: Tensor,
    leaf_bias: Tensor,
) -> Tensor:
    """Losses of pairs whose leaves are known (Eq. 6 without the wrong leaves).

    Parameters
    ----------
    root : Tensor, shape=(K, B, H)
    paths : LeafPaths
    weights, biases : iterable of Tensor, shape=(K, n, 2 H + 2, H) and (K, n, 2 H + 2, 1)
        One a layer; rows: left child, right child, decision.
    leaf_weight, leaf_bias : Tensor, shape=(K, R, 1, H) and (K, R, 1, 1)

    Returns
    -------
    Tensor, shape=(2, K)
        The mean of the leaves' negative log-probability; the sum of the offsets' squared
        errors, each times the pair's share.
    """
    layers = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
    losses: Tensor = _LeafPathLosses.apply(  # type: ignore[no-untyped-call]
        root, paths, leaf_weight, leaf_bias, *layers
    )
    return losses


def _in_lists(of_pairs: Tensor, rows: Tensor, num_nodes: int, longest: int) -> Tensor:
    """(K * B, O) -> (K * n, C, O), with zeros where a list is shorter."""
    size = num_nodes * longest
    if size != rows.shape[0]:
        of_pairs = of_pairs.new_zeros(size, of_pairs.shape[1]).index_copy_(0, rows, of_pairs)
    return of_pairs.view(num_nodes, longest, -1)


def _of_pairs(in_lists: Tensor, rows: Tensor) -> Tensor:
    """(K * n, C, O) -> (K * B, O)."""
    flat = in_lists.flatten(0, 1)
    return flat.contiguous() if flat.shape[0] == rows.shape[0] else flat.index_select(0, rows)


class _LeafPathLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        root: Tensor,
        paths: LeafPaths,
        leaf_weight: Tensor,
        leaf_bias: Tensor,
        *layers: Tensor,
    ) -> Tensor:
        num_models, _, hidden = root.shape
        weights, biases = layers[::2], layers[1::2]
        by_node = [weight.flatten(0, 1) for weight in weights]
        nodes = root.flatten(0, 1).index_select(0, paths.order)  # (K * B, H)
        inputs, features, logits = [], [], []
        for rows, longest, right, weight, bias in zip(
            paths.rows, paths.longest, paths.turn.bool(), by_node, biases, strict=True
        ):
            lists = _in_lists(nodes, rows, weight.shape[0], longest)  # (K * n, C, H)
            out = _of_pairs(stacked_product(lists, weight, bias.flatten(0, 1)), rows)
            left_child, right_child, decision = out.split_with_sizes((hidden, hidden, 2), dim=1)
            nodes = torch.where(right, right_child, left_child).clamp_(min=0)
            inputs.append(lists)
            features.append(nodes)
            logits.append(decision)
        ways = torch.stack(logits).log_softmax(dim=2)  # (L, K * B, 2)
        steps = ways.gather(2, paths.turn)  # (L, K * B, 1)
        weight_row = leaf_weight.flatten(0, 2).index_select(0, paths.leaf_row)  # (K * B, H)
        found = torch.linalg.vecdot(nodes, weight_row)
        error = found + leaf_bias.flatten().index_select(0, paths.leaf_row) - paths.offset
        shared_error = paths.share * error
        ctx.paths, ctx.shape = paths, root.shape
        ctx.saved = weight_row, by_node, inputs, features, steps, shared_error
        ctx.parameters = leaf_weight, leaf_bias, weights, biases
        classification = steps.sum(dim=(0, 2)).view(num_models, -1).mean(dim=1).neg_()
        return torch.stack([classification, (shared_error * error).view(num_models, -1).sum(dim=1)])

    @staticmethod
    def backward(ctx: Any, losses_grad: Tensor) -> tuple[Tensor | None, ...]:
        weight_row, by_node, inputs, features, steps, shared_error = ctx.saved
        leaf_weight, leaf_bias, weights, biases = ctx.parameters
        paths, (num_models, batch, hidden) = ctx.paths, ctx.shape
        of_models = losses_grad.unsqueeze(2)  # (2, K, 1)
        offset_grad = (2 * of_models[1] * shared_error.view(num_models, batch)).view(-1, 1)

        def write_leaf_weight(out: Tensor) -> None:
            rows = out.zero_().view(-1, hidden)
            rows.index_add_(0, paths.leaf_row, features[-1] * offset_grad)

        def write_leaf_bias(out: Tensor) -> None:
            out.zero_().view(-1, 1).index_add_(0, paths.leaf_row, offset_grad)

        of_leaves = gradient(leaf_weight, write_leaf_weight), gradient(leaf_bias, write_leaf_bias)
        of_layers: list[Tensor | None] = []  # from the last layer up: bias, weight
        # Of both children the one on the way has a gradient, where it is not cut off. Of both
        # decisions, d log_softmax is 1 - p for the way taken, p - 1 for the other.
        alive = torch.stack(features).sign_()  # (L, K * B, H); features are not negative
        alive = (paths.side.unsqueeze(3) * alive.unsqueeze(2)).flatten(2)  # (L, K * B, 2 H)
        wrong_way = -torch.expm1(steps).view(len(weights), num_models, batch)  # 1 - p
        decision = (wrong_way * (of_models[0] / -batch)).view(len(weights), -1, 1)
        decisions = (2 * paths.side - 1) * decision  # (L, K * B, 2)
        grad = weight_row * offset_grad  # (K * B, H)
        for layer in reversed(range(len(weights))):
            rows, weight = paths.rows[layer], by_node[layer]
            of_children = alive[layer] * torch.cat([grad, grad], dim=1)
            out_grad = _in_lists(
                torch.cat([of_children, decisions[layer]], dim=1),
                rows,
                weight.shape[0],
                paths.longest[layer],
            )
            grad = _of_pairs(torch.bmm(out_grad, weight), rows)
            of_layers.append(bias_gradient(biases[layer], out_grad))
            of_layers.append(weight_gradient(weights[layer], out_grad, inputs[layer]))
        root_grad = torch.empty_like(grad).index_copy_(0, paths.order, grad)
        return root_grad.view(ctx.shape), None, *of_leaves, *reversed(of_layers)
