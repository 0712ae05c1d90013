"""Output layers: each recipe's groups, places and loss; the loss of the MLP by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aqa_pipeline.config import HeadConfig, Recipe
from aqa_pipeline.core.groups import PairLabels, eq5_edges
from aqa_pipeline.heads.gart import leaf_losses
from aqa_pipeline.heads.outputs import OutputLayer, TreeOutput, fit_output_layer

RECIPES: tuple[Recipe, ...] = ("default", "official", "paper")
#: Labels of four clips of one group. Their differences, in both orders, are the twelve numbers
#: +-1, +-2, +-3, +-4, +-6, +-7.
PAIRS = PairLabels(np.array([0.0, 1.0, 3.0, 7.0]), np.zeros(4, dtype=np.int64))


def fitted(targets: Any, **config: Any) -> OutputLayer:
    return fit_output_layer(
        HeadConfig(**{"num_groups": 4, "hidden": 6, **config}),
        [targets],
        score_range=8.0,
        generators=[torch.Generator().manual_seed(1)],
    )


def tree_of(recipe: Recipe) -> TreeOutput:
    output = fitted(PAIRS, recipe=recipe)
    assert isinstance(output, TreeOutput)
    return output


def some_roots(batch: int) -> Tensor:
    return torch.rand(1, batch, 6, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("recipe", RECIPES)
def test_eq6_a_tree_learns_by_the_loss_of_its_recipe(recipe: Recipe) -> None:
    output, root = tree_of(recipe), some_roots(5)
    target = torch.tensor([[5.0, 6.0, -2.0, 1.0, -6.0]], dtype=torch.float64)
    leaf, offset = output.groups.leaf_and_offset(target)
    assert leaf[0, 0] == leaf[0, 1], "two pairs in one leaf, so that shares differ"
    (labels,) = output.labels(target[None])
    losses = output.losses(root, labels)
    by_recipe = {
        name: torch.stack(leaf_losses(output.tree(root), leaf, offset, recipe=name))
        for name in RECIPES
    }
    torch.testing.assert_close(losses, by_recipe.pop(recipe))
    for other in by_recipe.values():
        assert not torch.allclose(losses, other), "the recipes differ here"


@torch.no_grad()
@pytest.mark.parametrize("recipe", RECIPES)
def test_only_the_tree_of_the_paper_ends_in_a_sigmoid(recipe: Recipe) -> None:
    tree = tree_of(recipe).tree
    assert tree.sigmoid is (recipe == "paper")
    offset = tree(50 * some_roots(20)).offset
    assert bool(((offset >= 0) & (offset <= 1)).all()) is (recipe == "paper")


def test_eq5_the_groups_of_the_paper_are_of_both_orders_and_not_symmetric() -> None:
    both = [sign * delta for sign in (-1, 1) for delta in (1, 2, 3, 4, 6, 7)]
    edges = tree_of("paper").groups.edges
    # Sorted, T = 12: places floor(11 r / 4) = 0, 2, 5, 8, 11.
    assert edges.tolist() == [[-7, -4, -1, 3, 7]]
    np.testing.assert_array_equal(edges[0], eq5_edges(both, num_groups=4))
    # |delta|, T = 6: the middle place is floor(5 / 2) = 2; the outer edge is the range.
    for recipe in ("default", "official"):
        assert tree_of(recipe).groups.edges.tolist() == [[-8, -3, 0, 3, 8]]


@torch.no_grad()
def test_the_loss_of_the_mlp_is_the_mean_of_two_pairs() -> None:
    output = fitted(np.array([1.0, 7.0]), kind="mlp")
    for parameter in output.parameters():
        parameter.zero_()
    # The root mean square of 1 and 7 is 5, so that targets 5 and 10 are 1 and 2.
    (labels,) = output.labels(torch.tensor([[[5.0, 10.0]]], dtype=torch.float64))
    losses = output.losses(some_roots(2), labels)
    assert losses.tolist() == [[0.0], [(1.0 + 4.0) / 2]]


def test_a_direct_mlp_is_centred_and_scaled_by_the_labels() -> None:
    labels = np.array([1.0, 2.0, 3.0, 6.0])
    settings = fitted(labels, kind="mlp", mode="direct").settings()
    # Mean 3, squares 4, 1, 0, 9.
    assert settings == {"centre": [3.0], "spread": [3.5**0.5]}
    assert settings["spread"] == [labels.std()]
