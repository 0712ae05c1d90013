from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from aqa_pipeline.core.groups import Groups, eq5_edges, symmetric_edges
from aqa_pipeline.errors import UsageError
from aqa_pipeline.heads.gart import Gart, GroupTensors, Leaves, leaf_losses, uniform_parameter


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def small_tree(*seeds: int, num_groups: int = 8, sigmoid: bool = False) -> Gart:
    return Gart(num_groups=num_groups, hidden=5, sigmoid=sigmoid, generators=generators(*seeds))


def naive_tree(tree: Gart, model: int, feature: Tensor) -> tuple[list[float], list[float]]:
    """One pair down the tree, node by node: log-probability and offset of every leaf."""
    log_probs, offsets = [], []

    def visit(layer: int, node: int, feature: Tensor, log_prob: float) -> None:
        if layer == len(tree.weights):
            weight, bias = tree.leaf_weight[model, node], tree.leaf_bias[model, node]
            offset = float(weight[0] @ feature + bias[0, 0])
            log_probs.append(log_prob)
            offsets.append(1 / (1 + math.exp(-offset)) if tree.sigmoid else offset)
            return
        out = tree.weights[layer][model, node] @ feature + tree.biases[layer][model, node, :, 0]
        left, right, decision = out.split([tree.hidden, tree.hidden, 2])
        total = math.log(math.exp(float(decision[0])) + math.exp(float(decision[1])))
        for side, child in enumerate((left, right)):
            step = float(decision[side]) - total
            visit(layer + 1, 2 * node + side, child.clamp(min=0), log_prob + step)

    visit(0, 0, feature, 0.0)
    return log_probs, offsets


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
@torch.no_grad()
def test_the_tree_equals_one_walked_node_by_node(batch: int, sigmoid: bool) -> None:
    tree = small_tree(3, 4, sigmoid=sigmoid)
    root = torch.rand(2, batch, 5, generator=generators(0)[0])
    output = tree(root)
    assert output.log_prob.shape == output.offset.shape == (2, 8, batch)
    for model in range(2):
        for pair in range(batch):
            log_prob, offset = naive_tree(tree, model, root[model, pair])
            assert output.log_prob[model, :, pair].tolist() == pytest.approx(log_prob, abs=1e-5)
            assert output.offset[model, :, pair].tolist() == pytest.approx(offset, abs=1e-5)


@pytest.mark.parametrize("num_groups", [2, 4, 16, 32])
@torch.no_grad()
def test_leaf_probabilities_sum_to_one(num_groups: int) -> None:
    tree = small_tree(0, 1, num_groups=num_groups)
    root = 100 * torch.rand(2, 7, 5)
    torch.testing.assert_close(tree(root).log_prob.exp().sum(dim=1), torch.ones(2, 7))


@torch.no_grad()
def test_a_sigmoid_keeps_the_place_inside_its_interval() -> None:
    root = 50 * torch.rand(1, 20, 5, generator=generators(0)[0])
    free, held = (small_tree(0, sigmoid=sigmoid)(root).offset for sigmoid in (False, True))
    assert ((held >= 0) & (held <= 1)).all()
    assert not ((free >= 0) & (free <= 1)).all()


def test_no_model_of_a_stack_touches_another() -> None:
    tree = small_tree(0, 1, 2)
    tree(torch.rand(3, 4, 5)).log_prob[1].sum().backward()
    for parameter in tree.weights:
        assert parameter.grad is not None
        assert parameter.grad[1].any()
        assert not parameter.grad[[0, 2]].any()


def test_a_stack_starts_from_the_numbers_its_models_would_start_from_alone() -> None:
    stack, alone = small_tree(7, 8, 9), small_tree(8)
    for (name, a), (_, b) in zip(stack.named_parameters(), alone.named_parameters(), strict=True):
        assert torch.equal(a[1], b[0]), name
        assert not torch.equal(a[0], b[0]), name


def test_parameters_are_drawn_like_those_of_a_linear_layer() -> None:
    ours = uniform_parameter((200, 64), fan_in=64, generators=generators(1))[0]
    theirs = torch.nn.Linear(64, 200).weight
    assert ours.shape == theirs.shape
    assert ours.abs().max() <= 1 / 8
    torch.testing.assert_close(ours.std(), theirs.std(), rtol=0.05, atol=0)


def test_parameters_of_the_published_tree() -> None:
    tree = Gart(num_groups=16, hidden=256, sigmoid=False, generators=generators(0))
    inner, leaves = 256 * 2 + 2 + 256 * 512 + 512, 256 + 1
    assert sum(p.numel() for p in tree.parameters()) == 15 * inner + 16 * leaves


@pytest.mark.parametrize("num_groups", [0, 1, 6])
def test_a_tree_needs_a_power_of_two(num_groups: int) -> None:
    with pytest.raises(UsageError, match=f"num_groups is {num_groups}; a binary tree needs"):
        small_tree(0, num_groups=num_groups)


def several_groups() -> list[Groups]:
    """Four sets of 8 groups: symmetric, with ties, Eq. 5 over ordered pairs, ties outside."""
    rng = np.random.default_rng(0)
    deltas = rng.normal(scale=8, size=200).round(1)
    halves = (rng.integers(-6, 7, size=100) / 2).tolist()
    return [
        Groups(symmetric_edges(deltas, num_groups=8, score_range=30)),
        Groups(symmetric_edges(halves, num_groups=8, score_range=2.5)),
        Groups(eq5_edges(np.concatenate([deltas, -deltas]), num_groups=8)),
        Groups(eq5_edges([-4.0] * 20 + [-1.0, 0.0, 2.0, 3.0] + [5.0] * 20, num_groups=8)),
    ]


@given(st.lists(st.floats(-40, 40), max_size=20))
def test_groups_on_the_device_equal_those_in_numpy(more: list[float]) -> None:
    groups = several_groups()
    assert min((g.width == 0).sum() for g in groups[1::2]) > 0, "ties are among them"
    on_edge = [[*g.edges, *(g.edges + 1e-12), *(g.edges - 1e-12)] for g in groups]
    deltas = np.array([[*edges, *more, 0.0, -0.0, 0.00005, 99, -99] for edges in on_edge])
    leaf, offset = GroupTensors(groups).leaf_and_offset(torch.from_numpy(deltas))
    assert (leaf.dtype, offset.dtype) == (torch.int64, torch.float32)
    for k, expected in enumerate(groups):
        expected_leaf, expected_offset = expected.leaf_and_offset(deltas[k])
        np.testing.assert_array_equal(leaf[k].numpy(), expected_leaf)
        np.testing.assert_array_equal(offset[k].numpy(), expected_offset.astype(np.float32))
    steps = torch.from_numpy(np.stack([deltas, -deltas]))
    leaves, offsets = GroupTensors(groups).leaf_and_offset(steps)
    for step, own_leaf, own_offset in zip(steps, leaves, offsets, strict=True):
        leaf, offset = GroupTensors(groups).leaf_and_offset(step)
        assert torch.equal(own_leaf, leaf)
        assert torch.equal(own_offset, offset)


def certain(leaf: Tensor, offset: Tensor, num_groups: int) -> Leaves:
    """What a head says that is sure of the given leaves, and wrong in all other offsets."""
    log_prob = torch.full((*leaf.shape, num_groups), -50.0)
    offsets = torch.full((*leaf.shape, num_groups), 7.0)
    log_prob.scatter_(2, leaf.unsqueeze(2), 0.0)
    offsets.scatter_(2, leaf.unsqueeze(2), offset.unsqueeze(2))
    return Leaves(log_prob.transpose(1, 2), offsets.transpose(1, 2))


def test_eq7_a_perfect_head_returns_the_delta() -> None:
    groups = several_groups()
    tensors = GroupTensors(groups)
    inside = [np.linspace(g.edges[0], g.edges[-1], 203).round(4) for g in groups]
    delta = torch.from_numpy(np.stack(inside))
    leaf, offset = tensors.leaf_and_offset(delta)
    predicted, predicted_leaf = tensors.delta(certain(leaf, offset, 8))
    assert torch.equal(predicted_leaf, leaf)
    torch.testing.assert_close(predicted, delta, rtol=0, atol=1e-5)


def test_eq7_by_hand() -> None:
    tensors = GroupTensors([Groups(np.array([-4.0, -1.0, 0.0, 1.0, 4.0]))])
    output = certain(torch.tensor([[0, 3]]), torch.tensor([[0.5, 1.5]]), 4)
    assert tensors.delta(output)[0].tolist() == [[-2.5, 5.5]]


def test_eq7_no_prediction_leaves_through_an_empty_group() -> None:
    groups = Groups(np.array([-3.0, 0.0, 0.0, 0.0, 3.0]))
    log_prob = torch.tensor([0.1, 0.4, 0.3, 0.2]).log().view(1, 4, 1)
    delta, leaf = GroupTensors([groups]).delta(Leaves(log_prob, torch.full((1, 4, 1), 0.5)))
    assert leaf.tolist() == [[3]]
    assert delta.tolist() == [[1.5]]


def test_eq6_by_hand() -> None:
    log_prob = torch.tensor([[[0.25, 0.5], [0.75, 0.5]]]).log()  # (K=1, R=2, B=2)
    offset = torch.tensor([[[0.1, 0.4], [0.9, 0.0]]])
    leaf, target = torch.tensor([[1, 0]]), torch.tensor([[0.5, 0.5]])
    classification, regression = leaf_losses(
        Leaves(log_prob, offset), leaf, target, recipe="default"
    )
    assert classification.tolist() == pytest.approx([-(math.log(0.75) + math.log(0.5)) / 2])
    assert regression.tolist() == pytest.approx([(0.4**2 + 0.1**2) / 2])


def test_eq6_a_perfect_head_has_no_loss_and_each_model_has_its_own() -> None:
    leaf, offset = torch.tensor([[0, 2], [1, 1]]), torch.tensor([[0.2, 0.9], [0.5, 0.1]])
    output = certain(leaf, offset, 4)
    for part in leaf_losses(output, leaf, offset, recipe="default"):
        assert part.tolist() == [0, 0]
    wrong = torch.tensor([[0, 2], [3, 3]])
    classification, regression = leaf_losses(output, wrong, offset, recipe="default")
    assert classification.tolist() == [0, 50]
    assert regression[0] == 0 < regression[1]


def test_eq6_as_printed_is_a_cross_entropy_over_every_leaf() -> None:
    probability = torch.tensor([[0.2], [0.5], [0.3]])  # R=3 leaves, one pair
    output = Leaves(probability.log()[None], torch.full((1, 3, 1), 0.5))
    leaf, offset = torch.tensor([[1]]), torch.tensor([[0.75]])
    classification, regression = leaf_losses(output, leaf, offset, recipe="paper")
    expected = -(math.log(0.8) + math.log(0.5) + math.log(0.7))
    assert classification.tolist() == pytest.approx([expected])
    assert regression.tolist() == pytest.approx([0.0625])


def test_eq6_as_printed_is_a_mean_over_pairs() -> None:
    log_prob = torch.tensor([[[0.2, 0.9], [0.8, 0.1]]]).log()  # (K=1, R=2, B=2)
    output = Leaves(log_prob, torch.tensor([[[0.1, 0.4], [0.9, 0.0]]]))
    leaf, target = torch.tensor([[1, 0]]), torch.tensor([[0.5, 0.5]])
    classification, regression = leaf_losses(output, leaf, target, recipe="paper")
    # Of two leaves the other one has 1 - P: both terms of a pair are equal.
    assert classification.tolist() == pytest.approx([-2 * (math.log(0.8) + math.log(0.9)) / 2])
    assert regression.tolist() == pytest.approx([(0.4**2 + 0.1**2) / 2])


def test_eq6_as_printed_of_a_tree_that_is_nearly_sure_and_wrong() -> None:
    output = Leaves(torch.tensor([[[0.999], [0.001]]]).log(), torch.full((1, 2, 1), 0.5))
    leaf, place = torch.tensor([[1]]), torch.tensor([[0.5]])
    classification, _ = leaf_losses(output, leaf, place, recipe="paper")
    # -log(.001) of the true leaf and -log(1 - .999) of the other.
    assert classification.tolist() == pytest.approx([2 * math.log(1000)], rel=1e-3)


def test_eq6_as_printed_stays_finite_for_a_tree_that_is_sure_and_wrong() -> None:
    leaf, offset = torch.tensor([[0]]), torch.tensor([[0.5]])
    output = certain(leaf, offset, 4)
    for part in leaf_losses(output, torch.tensor([[3]]), offset, recipe="paper"):
        assert torch.isfinite(part).all()


def test_official_loss_sums_the_means_within_the_leaves() -> None:
    leaf, offset = torch.tensor([[0, 0, 2]]), torch.tensor([[0.5, 0.5, 0.5]])
    output = Leaves(
        torch.full((1, 3, 3), 1 / 3).log(),
        torch.tensor([[[0.5, 0.9, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.8]]]),
    )
    classification, regression = leaf_losses(output, leaf, offset, recipe="official")
    assert classification.tolist() == pytest.approx([math.log(3)])
    # Leaf 0: mean of 0 and 0.16; leaf 1: no pair; leaf 2: 0.09.
    assert regression.tolist() == pytest.approx([0.08 + 0.09])
    per_pair = leaf_losses(output, leaf, offset, recipe="default")[1]
    assert per_pair.tolist() == pytest.approx([(0.16 + 0.09) / 3])
