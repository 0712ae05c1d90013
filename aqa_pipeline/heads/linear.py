"""Quick form of linear layers side by side: gradients may go straight to their optimiser.

A step at batch 4 is bound by memory, not by arithmetic: a gradient that autograd puts into
fresh memory costs two to three times the product that makes it, and one in another order than
its weight is copied on top. An optimiser that :func:`give_gradients_to` names has each
gradient as it is computed, written where it wants; with all other parameters the
functions behave as autograd does, so that hooks (several processes that share their gradients)
and other graphs work.

The root layer of pairs in both orders (:func:`pair_roots`) is written by hand too: each clip goes
through both halves of the weights once. Of two pairs its dozen small operations, as autograd runs
them, take longer than its products. Tested equal to autograd on
:meth:`aqa_pipeline.heads.head.Head.root`.

Conventions
-----------
N
    Layers side by side: models, or models times nodes.
B, I, O
    Columns of the batch, inputs, outputs; of the root layer B pairs and, as in
    :mod:`aqa_pipeline.heads.head`, K heads. Of its 2 B clips, the first B are a, the others b.

Source: Eq. 4 (root layer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from aqa_pipeline.heads.head import Head

#: Writes a gradient into a contiguous tensor of its parameter's shape.
Write = Callable[[Tensor], None]

#: With so few columns on a CPU, a product that has the weights on its left takes 0.6 to 0.9
#: of the time of the other, if they are many.
_FEW_COLUMNS = 8
_LARGE = 2**16  #: numbers
_NARROW = 128  #: columns; a wider product is cut for the cores by the library itself
_PARTS = 8

#: id of a parameter -> its optimiser, which keeps the parameter alive as long as itself.
_takers: WeakValueDictionary[int, GradientSink] = WeakValueDictionary()


class GradientSink(Protocol):
    """An optimiser that wants gradients as they are computed."""

    def take(self, parameter: Tensor, write: Write) -> None:
        """Have ``write`` write the gradient; may change the parameter, which is read no more."""
        ...


def give_gradients_to(optimiser: GradientSink, parameters: Iterable[nn.Parameter]) -> None:
    """Let an optimiser, while it lives, have the parameters' gradients instead of ``.grad``."""
    for parameter in parameters:
        _takers[id(parameter)] = optimiser


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Quick form of :func:`aqa_pipeline.heads.gart.linear`."""
    out: Tensor = _StackedLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


def stacked_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`stacked_linear` without a gradient of its own."""
    if weight.ndim > 3:
        weight = weight.flatten(0, -3)
        bias = None if bias is None else bias.flatten(0, -3)
    if x.shape[1] <= _FEW_COLUMNS and x.device.type == "cpu" and weight.numel() >= _LARGE:
        out = torch.bmm(weight, x.mT) if bias is None else torch.baddbmm(bias, weight, x.mT)
        return out.mT
    return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias.mT, x, weight.mT)


class _StackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.x, ctx.weight, ctx.bias = x, weight, bias
        return stacked_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        grad = grad.contiguous()
        x_grad = input_gradient(ctx.weight, grad) if ctx.needs_input_grad[0] else None
        bias_grad = None if ctx.bias is None else bias_gradient(ctx.bias, grad)
        return x_grad, weight_gradient(ctx.weight, grad, ctx.x), bias_grad


def input_gradient(weight: Tensor, out_grad: Tensor) -> Tensor:
    """``out_grad @ weight``, shape=(N, B, I); before the weight's own gradient is taken."""
    return torch.bmm(out_grad, weight.flatten(0, -3))


def weight_gradient(weight: Tensor, out_grad: Tensor, x: Tensor) -> Tensor | None:
    """``out_grad.T @ x``, of shapes (N, B, O) and (N, B, I); see :func:`gradient`."""

    def write(out: Tensor) -> None:
        _write_weight_gradient(out.view(-1, *weight.shape[-2:]), out_grad, x)

    return gradient(weight, write)


def _write_weight_gradient(out: Tensor, out_grad: Tensor, x: Tensor) -> None:
    layers, columns, rows = out_grad.shape
    if x.device.type == "cpu" and columns == 1:
        torch.mul(out_grad.mT, x, out=out)  # bmm takes twice the time
    elif (
        x.device.type == "cpu"
        and layers == 1
        and columns <= _NARROW
        and out.numel() > _LARGE
        and rows % _PARTS == 0
    ):
        # One product of so few columns keeps one core busy; several share the cores.
        by_part = out_grad.view(columns, _PARTS, -1).permute(1, 2, 0)
        torch.bmm(by_part, x.expand(_PARTS, -1, -1), out=out.view(_PARTS, -1, out.shape[2]))
    else:
        torch.bmm(out_grad.mT, x, out=out)


def bias_gradient(bias: Tensor, out_grad: Tensor) -> Tensor | None:
    """The sum over the batch, of shape (N, B, O); see :func:`gradient`."""

    def write(out: Tensor) -> None:
        torch.sum(out_grad, dim=1, out=out.view(out_grad.shape[0], -1))

    return gradient(bias, write)


def gradient(parameter: Tensor, write: Write) -> Tensor | None:
    """What a backward function returns for a parameter; called after its last use.

    Returns
    -------
    Tensor or None
        None where the gradient is not wanted, or the parameter's optimiser has it already.
    """
    if not parameter.requires_grad:
        return None
    optimiser = _takers.get(id(parameter))
    if optimiser is not None:
        optimiser.take(parameter, write)
        return None
    fresh = torch.empty_like(parameter, memory_format=torch.contiguous_format)
    write(fresh)
    return fresh


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


def pair_roots(head: Head, standardised: Tensor, exemplar_label: Tensor) -> Tensor:
    """Quick form of :meth:`aqa_pipeline.heads.head.Head.roots_of_pairs`."""
    label = (exemplar_label / head.epsilon).to(standardised.dtype).unsqueeze(2)  # (K, 2 B, 1)
    layer = RootLayer(head.query_weight, head.exemplar_weight, head.label_weight, head.bias)
    vector = head.aggregate(standardised)  # (K, 2 B, E)
    root: Tensor = _PairRoots.apply(vector, label, *layer)  # type: ignore[no-untyped-call]
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
