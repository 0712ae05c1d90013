"""The root layer of pairs in both orders: a against b, and b against a.

Each clip goes through both halves of the weights once. The gradient is written by hand: of two
pairs the layer's dozen small operations, as autograd runs them, take longer than its products;
tested equal to autograd on :meth:`aqa_pipeline.heads.Head.root`.

Conventions as in :mod:`aqa_pipeline.heads`; of the 2 B clips, the first B are a, the others b.

Source: Eq. 4.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from aqa_pipeline.stacked_linear import (
    bias_gradient,
    gradient,
    input_gradient,
    stacked_product,
    weight_gradient,
)


class RootLayer(NamedTuple):
    """The parameters of the layer.

    Attributes
    ----------
    query_weight, exemplar_weight : Tensor, shape=(K, H, E)
    label_weight, bias : Tensor, shape=(K, H, 1)
    """

    query_weight: Tensor
    exemplar_weight: Tensor
    label_weight: Tensor
    bias: Tensor


def pair_roots(vector: Tensor, exemplar_label: Tensor, layer: RootLayer) -> Tensor:
    """Root features of pairs in both orders.

    Parameters
    ----------
    vector : Tensor, shape=(K, 2 B, E)
        Aggregated features.
    exemplar_label : Tensor, shape=(K, 2 B, 1)
        Labels of the clips b, then of the clips a, each divided by epsilon.
    layer : RootLayer

    Returns
    -------
    Tensor, shape=(K, 2 B, H)
        Of a against b, then of b against a.
    """
    root: Tensor = _PairRoots.apply(vector, exemplar_label, *layer)  # type: ignore[no-untyped-call]
    return root


class _PairRoots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vector: Tensor, label: Tensor, *parameters: Tensor) -> Tensor:
        query_weight, exemplar_weight, label_weight, bias = parameters
        query = stacked_product(vector, query_weight, bias)
        exemplar = stacked_product(vector, exemplar_weight).roll(vector.shape[1] // 2, 1)
        root = torch.addcmul(query, label, label_weight.mT).add_(exemplar).relu_()
        ctx.saved, ctx.parameters = (vector, label, root.detach()), RootLayer(*parameters)
        return root

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (vector, label, root), layer = ctx.saved, ctx.parameters
        grad = grad * root.sign()  # 0 where the feature was cut off
        of_exemplars = grad.roll(vector.shape[1] // 2, 1)

        def write_label_weight(out: Tensor) -> None:
            torch.bmm(grad.mT, label, out=out)

        vector_grad = None
        if ctx.needs_input_grad[0]:
            vector_grad = input_gradient(layer.query_weight, grad)
            vector_grad += input_gradient(layer.exemplar_weight, of_exemplars)
        return (
            vector_grad,
            None,
            weight_gradient(layer.query_weight, grad, vector),
            weight_gradient(layer.exemplar_weight, of_exemplars, vector),
            gradient(layer.label_weight, write_label_weight),
            bias_gradient(layer.bias, grad),
        )
