from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aqa_pipeline.core.groups import Groups
from aqa_pipeline.heads import leaf_search
from aqa_pipeline.heads.gart import Gart, GroupTensors
from aqa_pipeline.heads.leaf_search import best_leaf

#: Edges with and without empty groups, at an end and inside.
EDGES = [
    np.arange(9.0),
    np.array([0.0, 0, 0, 1, 2, 2, 3, 4, 4]),
    np.array([0.0, 1, 1, 1, 1, 1, 1, 1, 2]),
]


def a_tree(sure: float) -> Gart:
    """Three trees; the larger ``sure``, the surer."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    tree = Gart(num_groups=8, hidden=6, sigmoid=False, generators=generators)
    with torch.no_grad():
        for parameter in tree.parameters():
            parameter.mul_(sure)
    return tree


def search(tree: Gart, root: Tensor, reachable: Tensor) -> tuple[Tensor, Tensor]:
    return best_leaf(
        root, list(tree.weights), list(tree.biases), tree.leaf_weight, tree.leaf_bias,
        reachable=reachable,
    )  # fmt: skip


@pytest.mark.parametrize("sure", [0.3, 1.0, 3.0, 10.0])
@torch.no_grad()
def test_the_leaf_is_the_best_of_the_whole_tree(sure: float) -> None:
    tree, groups = a_tree(sure), GroupTensors([Groups(edges) for edges in EDGES])
    root = torch.randn(3, 200, 6, generator=torch.Generator().manual_seed(1)).relu()
    leaf, offset = search(tree, root, groups.reachable)
    output = tree(root)
    delta, expected = groups.delta(output)
    assert torch.equal(leaf, expected)
    torch.testing.assert_close(groups.at(leaf, offset), delta, rtol=1e-4, atol=1e-4 * sure**4)
    assert {int(x) for x in leaf[2]} <= {0, 7}, "empty groups are never answered"


@torch.no_grad()
def test_a_greedy_way_down_would_miss_some() -> None:
    tree, groups = a_tree(1.0), GroupTensors([Groups(EDGES[0])] * 3)
    root = torch.randn(3, 200, 6, generator=torch.Generator().manual_seed(1)).relu()
    log_prob = tree(root).log_prob
    greedy = torch.zeros(3, 200, dtype=torch.int64)
    for layer in range(3):
        by_node = log_prob.logsumexp(dim=1) * 0 + greedy  # (K, B)
        mass = log_prob.exp().view(3, 2 ** (layer + 1), -1, 200).sum(dim=2)
        pair = torch.stack([mass.gather(1, (2 * by_node.long() + s).unsqueeze(1)) for s in (0, 1)])
        greedy = 2 * greedy + pair.argmax(dim=0).squeeze(1)
    leaf, _ = search(tree, root, groups.reachable)
    assert (leaf != greedy).any(), "else this test says nothing"
    assert torch.equal(leaf, log_prob.argmax(dim=1))


@torch.no_grad()
def test_a_sure_tree_is_hardly_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    walked = []
    step = leaf_search._step

    def count(*arguments: Any) -> Any:
        rows = step(*arguments)
        walked.append(len(rows.pair))
        return rows

    monkeypatch.setattr(leaf_search, "_step", count)
    root = torch.rand(3, 50, 6)
    reachable = torch.ones(3, 8, dtype=torch.bool)
    search(a_tree(30.0), root, reachable)
    sure, walked = sum(walked), []
    search(a_tree(0.01), root, reachable)
    assert 3 * 150 <= sure < 1.3 * 3 * 150 < sum(walked), "3 layers of 150 pairs at least"
