from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aqa_pipeline.heads.head import Head
from tests.heads.test_head import small_head, some_features


def roots_by_autograd(head: Head, features: Tensor, label: Tensor) -> Tensor:
    """Both orders, each as :meth:`Head.root` makes it."""
    a, b = features.chunk(2, dim=1)
    of_a, of_b = label.chunk(2, dim=1)
    return torch.cat(
        [
            head.root(head.halves(a).query, head.halves(b).exemplar, of_b),
            head.root(head.halves(b).query, head.halves(a).exemplar, of_a),
        ],
        dim=1,
    )


@pytest.mark.parametrize("aggregation", ["mean", "ordered"])
def test_both_orders_and_their_gradients_equal_autograds(aggregation: str) -> None:
    head = small_head(1, 2, aggregation=aggregation).double()
    features = some_features(2, 6, seed=1).double()
    label = torch.linspace(10, 25, 12, dtype=torch.float64).view(2, 6)
    found = []
    for by_hand in (False, True):
        head.zero_grad()
        if by_hand:
            root = head.roots_of_pairs(head.standardise(features), label.roll(3, 1))
        else:
            root = roots_by_autograd(head, features, label)
        assert 0 < (root == 0).sum() < root.numel(), "some features are cut off, some are not"
        # Weights that differ, so that no column's gradient can pass for another's.
        weight = torch.linspace(-1, 2, root.numel(), dtype=torch.float64).view_as(root)
        (root * weight).sum().backward()  # type: ignore[no-untyped-call]
        gradients = {n: p.grad for n, p in head.named_parameters() if p.grad is not None}
        found.append({"root": root.detach(), **gradients})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == 1 + 4 + (2 if aggregation == "ordered" else 0)
    torch.testing.assert_close(found[1], found[0])
