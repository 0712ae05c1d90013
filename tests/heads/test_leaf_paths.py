from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aqa_pipeline.config import Recipe
from aqa_pipeline.heads.gart import Gart, leaf_losses, pair_shares
from aqa_pipeline.heads.leaf_paths import leaf_path_losses, leaf_paths
from aqa_pipeline.heads.linear import give_gradients_to
from aqa_pipeline.training.adam import StackedAdam
from tests.heads.test_linear import Listener


def a_tree(*seeds: int, num_groups: int = 8, hidden: int = 5) -> Gart:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return Gart(num_groups=num_groups, hidden=hidden, sigmoid=False, generators=generators).double()


def some_pairs(
    models: int, batch: int, num_groups: int = 8, hidden: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    """Root features, leaves (some of them wanted by nobody) and offsets."""
    generator = torch.Generator().manual_seed(3)
    root = torch.rand(models, batch, hidden, generator=generator, dtype=torch.float64)
    leaf = torch.randint(num_groups - 1, (models, batch), generator=generator)
    return root, leaf, torch.rand(models, batch, generator=generator, dtype=torch.float64)


def path_losses(
    tree: Gart, root: Tensor, leaf: Tensor, offset: Tensor, recipe: Recipe = "default"
) -> Tensor:
    share = pair_shares(leaf, recipe=recipe, num_groups=tree.num_groups)
    (paths,) = leaf_paths(leaf[None], offset[None], share[None], num_layers=len(tree.weights))
    return leaf_path_losses(
        root, paths, tree.weights, tree.biases, tree.leaf_weight, tree.leaf_bias
    )


def gradients(tree: Gart) -> list[Tensor]:
    return [p.grad.clone() for p in tree.parameters() if p.grad is not None]


@pytest.mark.parametrize("recipe", ["default", "official"])
@pytest.mark.parametrize(
    ("batch", "in_place"), [(1, False), (2, False), (8, False), (13, False), (13, True)]
)
def test_the_way_to_the_leaf_and_its_gradient_equal_those_of_the_whole_tree(
    batch: int, in_place: bool, recipe: Recipe
) -> None:
    tree = a_tree(1, 2, 3)
    listener = Listener()
    if in_place:
        give_gradients_to(listener, tree.parameters())
    root, leaf, offset = some_pairs(3, batch)
    found = []
    for whole in (True, False):
        own = root.clone().requires_grad_()
        tree.zero_grad()
        if whole:
            losses = torch.stack(leaf_losses(tree(own), leaf, offset, recipe=recipe))
        else:
            losses = path_losses(tree, own, leaf, offset, recipe)
        # Weights that differ, so that no model's gradient can pass for another's.
        weight = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
        ((losses[0] + 0.7 * losses[1]) * weight).sum().backward()  # type: ignore[no-untyped-call]
        assert own.grad is not None
        found.append([losses.detach(), own.grad, *gradients(tree)])
    assert len(found[0]) == len(found[1]) == 2 + 8
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_lists_that_are_full_need_no_filling() -> None:
    tree = a_tree(1, 2)
    root, _, offset = some_pairs(2, 8)
    for leaf in (torch.arange(8), torch.tensor([7, 0, 0, 7, 0, 7, 7, 0]), torch.full((8,), 5)):
        leaf = leaf.expand(2, -1)
        expected = torch.stack(leaf_losses(tree(root), leaf, offset, recipe="default"))
        torch.testing.assert_close(path_losses(tree, root, leaf, offset), expected)


def test_the_ways_of_many_steps_are_those_of_each() -> None:
    generator = torch.Generator().manual_seed(0)
    leaf = torch.randint(16, (5, 3, 6), generator=generator)
    offset = torch.rand(5, 3, 6, generator=generator)
    share = pair_shares(leaf, recipe="official", num_groups=16)
    together = leaf_paths(leaf, offset, share, num_layers=4)
    assert len({tuple(paths.longest) for paths in together}) > 1, "lists of different lengths"
    for t, paths in enumerate(together):
        (alone,) = leaf_paths(leaf[t, None], offset[t, None], share[t, None], num_layers=4)
        assert paths.longest == alone.longest
        for a, b in zip(paths[:6], alone[:6], strict=True):
            assert isinstance(a, Tensor)
            assert isinstance(b, Tensor)
            assert torch.equal(a, b)
        for a, b in zip(paths.rows, alone.rows, strict=True):
            assert torch.equal(a, b)


def test_a_second_gradient_is_added_to_the_first() -> None:
    tree = a_tree(1)
    root, leaf, offset = some_pairs(1, 6)
    path_losses(tree, root, leaf, offset)[0].sum().backward()  # type: ignore[no-untyped-call]
    once = gradients(tree)
    path_losses(tree, root, leaf, offset)[0].sum().backward()  # type: ignore[no-untyped-call]
    for one, two in zip(once, gradients(tree), strict=True):
        torch.testing.assert_close(two, 2 * one)


def test_memory_that_is_used_again_holds_nothing_of_the_step_before() -> None:
    tree, listener = a_tree(1), Listener()
    give_gradients_to(listener, tree.parameters())
    root, leaf, offset = some_pairs(1, 6)

    def run(batch: int) -> list[Tensor]:
        tree.zero_grad()
        losses = path_losses(tree, root[:, :batch], leaf[:, :batch], offset[:, :batch])
        losses.sum().backward()  # type: ignore[no-untyped-call]
        return gradients(tree)

    expected = run(6)
    run(2)
    for found, wanted in zip(run(6), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_an_optimiser_that_moves_large_weights_at_once_learns_as_one_that_waits() -> None:
    ours, theirs = a_tree(1, 2, hidden=200), a_tree(1, 2, hidden=200)
    at_once = StackedAdam(ours.parameters(), learning_rates=[1e-3] * 2, weight_decays=[0.1] * 2)
    waits = torch.optim.Adam(theirs.parameters(), lr=1e-3, weight_decay=0.1)
    for batch in (6, 2, 1, 6):  # memory that is used again must hold nothing of the step before
        root, leaf, offset = some_pairs(2, batch, hidden=200)
        at_once.zero_grad()
        before = ours.weights[0].detach().clone(), ours.biases[0].detach().clone()
        path_losses(ours, root, leaf, offset).sum().backward()  # type: ignore[no-untyped-call]
        assert not torch.equal(ours.weights[0], before[0]), "it has been moved already"
        assert torch.equal(ours.biases[0], before[1]), "it waits for the others"
        at_once.step()
        waits.zero_grad()
        torch.stack(leaf_losses(theirs(root), leaf, offset, recipe="default")).sum().backward()  # type: ignore[no-untyped-call]
        waits.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("hidden", [200, 5])
def test_a_weight_that_is_used_twice_in_a_step_is_refused(hidden: int) -> None:
    tree = a_tree(1, hidden=hidden)
    optimiser = StackedAdam(tree.parameters(), learning_rates=[1e-3], weight_decays=[0.0])
    optimiser.zero_grad()
    root, leaf, offset = some_pairs(1, 6, hidden=hidden)
    total = path_losses(tree, root, leaf, offset) + path_losses(tree, root, leaf, offset)
    with pytest.raises(RuntimeError, match="a second gradient in one step"):
        total.sum().backward()  # type: ignore[no-untyped-call]
