"""The way through the tree, on a tree small enough to be walked by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from aqa_pipeline.config import HeadConfig
from aqa_pipeline.errors import UsageError
from aqa_pipeline.heads.batch_voting import vote
from aqa_pipeline.heads.head import Head
from aqa_pipeline.heads.outputs import fit_output_layer
from aqa_pipeline.heads.tree_path import read_path, tree_path

#: Four leaves: first decision .3 / .7, then .5 / .5 on the left, .8 / .2 on the right.
LEAF_PROB = [0.15, 0.15, 0.56, 0.14]
EDGES = [-4.0, -1.0, 0.0, 1.0, 4.0]


def test_fig8_path_of_a_hand_made_tree() -> None:
    path = read_path(LEAF_PROB, [0.1, 0.2, 0.25, 0.9], EDGES)
    assert path.num_layers == 2
    np.testing.assert_allclose(path.node_prob(1), [0.3, 0.7])
    np.testing.assert_allclose(path.node_prob(2), LEAF_PROB)
    assert (path.node(1), path.node(2), path.leaf) == (1, 2, 2)
    assert path.turns_up == (True, False)
    np.testing.assert_allclose(path.path_prob, [0.7, 0.56])
    np.testing.assert_allclose(path.step_prob, [0.7, 0.8])
    assert path.interval == (0.0, 1.0)
    assert path.offset == 0.25
    assert path.value == 0.25


def test_the_path_leads_to_the_best_leaf_even_past_a_less_likely_half() -> None:
    path = read_path([0.3, 0.25, 0.05, 0.4], [0.5] * 4, EDGES)
    assert path.leaf == 3
    np.testing.assert_allclose(path.step_prob, [0.45, 0.4 / 0.45])


def test_an_empty_leaf_is_never_chosen() -> None:
    path = read_path(LEAF_PROB, [0.5] * 4, [-4.0, -1.0, 0.0, 0.0, 4.0])
    assert path.leaf == 0


def test_lengths_that_make_no_tree_are_refused() -> None:
    with pytest.raises(UsageError, match="3 leaf probabilities, 3 offsets and 4 edges"):
        read_path([0.2, 0.3, 0.5], [0.5] * 3, [0, 1, 2, 3])
    with pytest.raises(UsageError, match="R, R and R \\+ 1 are needed"):
        read_path(LEAF_PROB, [0.5] * 4, [0, 1])


def made_head(seeds: Sequence[int] = (0, 1), **config: object) -> Head:
    head_config = HeadConfig(hidden=6, num_groups=8, reduced_dim=3, **config)  # type: ignore[arg-type]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    deltas = np.random.default_rng(0).normal(scale=4, size=200)
    output = fit_output_layer(
        head_config, [deltas] * len(seeds), score_range=30.0, generators=generators
    )
    return Head(
        head_config,
        num_snippets=2,
        feature_dim=5,
        output=output,
        epsilon=30.0,
        generators=generators,
    )


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_a_path_ends_where_the_vote_of_that_pair_does(recipe: str) -> None:
    head = made_head(recipe=recipe)
    clips = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([10.0, 15.0, 20.0], dtype=torch.float64)
    votes = vote(
        head,
        queries=clips[:1],
        pool=clips[1:],
        pool_label=labels,
        exemplars=torch.tensor([[0, 1, 2]]),
    )
    for model in (0, 1):
        for m, label in enumerate(labels.tolist()):
            path = tree_path(
                head, clips[0], exemplar=clips[1 + m], exemplar_label=label, model=model
            )
            assert path.leaf == votes.leaf[model, 0, m]
            assert label + path.value == pytest.approx(votes.label[model, 0, m], abs=1e-5)
            assert path.leaf_prob.sum() == pytest.approx(1, abs=1e-6)


def test_a_direct_tree_answers_the_label_itself() -> None:
    head = made_head(mode="direct")
    clips = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(3))
    nobody = torch.empty(1, 0, dtype=torch.int64)
    votes = vote(head, queries=clips, pool=clips, pool_label=torch.zeros(1), exemplars=nobody)
    assert tree_path(head, clips[0], model=1).value == pytest.approx(votes.label[1, 0, 0], abs=1e-5)


def test_heads_without_a_tree_or_an_exemplar_say_so() -> None:
    clip = torch.zeros(2, 5)
    with pytest.raises(UsageError, match="kind 'mlp' has no tree"):
        tree_path(made_head(kind="mlp"), clip)
    with pytest.raises(UsageError, match="give an exemplar and its label"):
        tree_path(made_head(), clip)
