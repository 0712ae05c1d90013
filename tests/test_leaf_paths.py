from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aqa_pipeline.config import Recipe
from aqa_pipeline.gart import Gart, leaf_losses, true_leaf_losses
from aqa_pipeline.stacked_adam import StackedAdam
from aqa_pipeline.stacked_linear import give_gradients_to
from tests.test_stacked_linear import Listener


def a_tree(*seeds: int, num_groups: int = 8, hidden: int = 5) -> Gart:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return Gart(num_groups=num_groups, hidden=hidden, sigmoid=False, generators=generators).double()


def some_pairs(
    models: int, batch: int, num_groups: int = 8, hidden: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    """Root features, leaves (some of them wanted by nobody) and places."""
    generator = torch.Generator().manual_seed(3)
    root = torch.rand(models, batch, hidden, generator=generator, dtype=torch.float64)
    leaf = torch.randint(num_groups - 1, (models, batch), generator=generator)
    return root, leaf, torch.rand(models, batch, generator=generator, dtype=torch.float64)


def gradients(tree: Gart) -> list[Tensor]:
    return [p.grad.clone() for p in tree.parameters() if p.grad is not None]


@pytest.mark.parametrize("recipe", ["default", "official"])
@pytest.mark.parametrize(("batch", "in_place"), [(1, False), (13, False), (13, True)])
def test_the_way_to_the_leaf_and_its_gradient_equal_those_of_the_whole_tree(
    batch: int, in_place: bool, recipe: Recipe
) -> None:
    tree = a_tree(1, 2, 3)
    listener = Listener()
    if in_place:
        give_gradients_to(listener, tree.parameters())
    root, leaf, place = some_pairs(3, batch)
    found = []
    for whole in (True, False):
        own = root.clone().requires_grad_()
        tree.zero_grad()
        if whole:
            losses = leaf_losses(tree(own), leaf, place, recipe=recipe)
        else:
            losses = true_leaf_losses(
                *tree.at_leaf(own, leaf), leaf, place, recipe=recipe, num_groups=8
            )
        # Weights that differ, so that no model's gradient can pass for another's.
        weight = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
        ((losses[0] + 0.7 * losses[1]) * weight).sum().backward()  # type: ignore[no-untyped-call]
        assert own.grad is not None
        found.append([torch.stack(losses).detach(), own.grad, *gradients(tree)])
    assert len(found[0]) == len(found[1]) == 2 + 8
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_second_gradient_is_added_to_the_first() -> None:
    tree = a_tree(1)
    root, leaf, _ = some_pairs(1, 6)
    tree.at_leaf(root, leaf)[0].sum().backward()  # type: ignore[no-untyped-call]
    once = gradients(tree)
    tree.at_leaf(root, leaf)[0].sum().backward()  # type: ignore[no-untyped-call]
    for one, two in zip(once, gradients(tree), strict=True):
        torch.testing.assert_close(two, 2 * one)


def test_memory_that_is_used_again_holds_nothing_of_the_step_before() -> None:
    tree, listener = a_tree(1), Listener()
    give_gradients_to(listener, tree.parameters())
    root, leaf, _ = some_pairs(1, 6)
    tree.at_leaf(root, leaf)[1].sum().backward()  # type: ignore[no-untyped-call]
    expected = gradients(tree)
    for batch in (6, 2, 6):
        tree.zero_grad()
        tree.at_leaf(root[:, :batch], leaf[:, :batch])[1].sum().backward()  # type: ignore[no-untyped-call]
    for found, wanted in zip(gradients(tree), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_an_optimiser_that_moves_large_weights_at_once_learns_as_one_that_waits() -> None:
    ours, theirs = a_tree(1, 2, hidden=200), a_tree(1, 2, hidden=200)
    at_once = StackedAdam(ours.parameters(), learning_rates=[1e-3] * 2, weight_decays=[0.1] * 2)
    waits = torch.optim.Adam(theirs.parameters(), lr=1e-3, weight_decay=0.1)
    for batch in (6, 2, 1, 6):  # memory that is used again must hold nothing of the step before
        root, leaf, _ = some_pairs(2, batch, hidden=200)
        at_once.zero_grad()
        log_prob, place = ours.at_leaf(root, leaf)
        (log_prob + place.square()).sum().backward()  # type: ignore[no-untyped-call]
        assert ours.weights[0].grad is None, "it has been moved already"
        at_once.step()
        waits.zero_grad()
        output, index = theirs(root), leaf.unsqueeze(1)
        log_prob, place = (part.gather(1, index) for part in output)
        (log_prob + place.square()).sum().backward()
        waits.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_large_weight_that_is_used_twice_in_a_step_is_refused() -> None:
    tree = a_tree(1, hidden=200)
    optimiser = StackedAdam(tree.parameters(), learning_rates=[1e-3], weight_decays=[0.0])
    root, leaf, _ = some_pairs(1, 6, hidden=200)
    total = tree.at_leaf(root, leaf)[0].sum() + tree.at_leaf(root, leaf)[1].sum()
    with pytest.raises(RuntimeError, match="moved in this step"):
        total.backward()  # type: ignore[no-untyped-call]
    del optimiser
