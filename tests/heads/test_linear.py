from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aqa_pipeline.heads.head import Head
from aqa_pipeline.heads.linear import Write, give_gradients_to, stacked_linear, weight_gradient
from tests.heads.test_head import small_head, some_features


class Listener:
    """Puts what it is given where autograd would have put it, always in the same memory."""

    def __init__(self) -> None:
        self.memory: dict[int, torch.Tensor] = {}

    def take(self, parameter: torch.Tensor, write: Write) -> None:
        out = self.memory.setdefault(id(parameter), torch.full_like(parameter, torch.nan))
        write(out)
        parameter.grad = out


@pytest.mark.parametrize("in_place", [False, True])
def test_values_and_gradients_equal_autograds(in_place: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, 3, generator=generator, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(2, 3, 5, 3, generator=generator))
    bias = torch.nn.Parameter(torch.randn(2, 3, 5, 1, generator=generator))
    wanted = torch.randn(6, 4, 5, generator=generator)
    listener = Listener()
    if in_place:
        give_gradients_to(listener, [weight, bias])

    def gradients(out: torch.Tensor) -> list[torch.Tensor]:
        for tensor in (x, weight, bias):
            tensor.grad = None
        (out - wanted).square().sum().backward()  # type: ignore[no-untyped-call]
        return [tensor.grad.clone() for tensor in (x, weight, bias) if tensor.grad is not None]

    plain = x @ weight.flatten(0, 1).mT + bias.flatten(0, 1).mT
    expected = gradients(plain)
    for _ in range(2):  # the second time, in the same memory
        out = stacked_linear(x, weight, bias)
        torch.testing.assert_close(out, plain)
        for a, b in zip(gradients(out), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_an_optimiser_that_is_gone_is_asked_no_more() -> None:
    weight = torch.nn.Parameter(torch.ones(1, 4, 3))
    listener = Listener()
    give_gradients_to(listener, [weight])
    del listener
    stacked_linear(torch.ones(1, 2, 3), weight).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad.eq(2).all()


def test_a_layer_used_twice_has_both_gradients() -> None:
    x = torch.ones(1, 2, 3)
    weight = torch.nn.Parameter(torch.ones(1, 4, 3))
    (stacked_linear(x, weight) + 2 * stacked_linear(x, weight)).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert (weight.grad == 6).all()


def test_a_frozen_weight_keeps_no_gradient() -> None:
    x = torch.ones(1, 2, 3, requires_grad=True)
    weight = torch.nn.Parameter(torch.ones(1, 4, 3), requires_grad=False)
    stacked_linear(x, weight).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is None
    assert x.grad is not None
    assert (x.grad == 4).all()


def test_hooks_are_called_for_parameters_that_no_optimiser_takes() -> None:
    weight = torch.nn.Parameter(torch.ones(1, 4, 3))
    called = []
    weight.register_hook(lambda grad: called.append(grad.shape))  # type: ignore[no-untyped-call]
    stacked_linear(torch.ones(1, 2, 3), weight).sum().backward()  # type: ignore[no-untyped-call]
    assert called == [weight.shape]
    (of_x,) = torch.autograd.grad(
        stacked_linear(x := torch.ones(1, 2, 3, requires_grad=True), weight).sum(), x
    )
    assert (of_x == 4).all()
    assert weight.grad is not None
    assert weight.grad.eq(2).all(), "a gradient of something else leaves it alone"


@pytest.mark.parametrize("columns", [1, 2, 8, 9])
@pytest.mark.parametrize("has_bias", [False, True])
def test_large_weights_give_the_plain_product_whatever_the_columns(
    columns: int, has_bias: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, columns, 200, generator=generator, dtype=torch.float64)
    weight = torch.rand(2, 3, 402, 200, generator=generator, dtype=torch.float64)
    bias = torch.rand(2, 3, 402, 1, generator=generator, dtype=torch.float64)
    expected = torch.einsum("nbi,noi->nbo", x, weight.flatten(0, 1))
    if has_bias:
        expected += bias.flatten(0, 1).mT
    found = stacked_linear(x, weight, bias if has_bias else None)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("columns", [1, 4, 128, 129])
@pytest.mark.parametrize(("layers", "rows"), [(1, 400), (1, 401), (3, 400)])
def test_the_gradient_of_a_large_weight_is_the_plain_product_however_it_is_cut(
    layers: int, rows: int, columns: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(layers, columns, 200, generator=generator, dtype=torch.float64)
    out_grad = torch.rand(layers, columns, rows, generator=generator, dtype=torch.float64)
    weight = torch.nn.Parameter(torch.zeros(layers, rows, 200, dtype=torch.float64))
    found = weight_gradient(weight, out_grad, x)
    assert found is not None
    torch.testing.assert_close(found, torch.einsum("nbo,nbi->noi", out_grad, x))


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
