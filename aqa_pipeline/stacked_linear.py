"""Linear layers side by side, whose gradients are written where the last ones were.

A step at batch 4 is bound by memory, not by arithmetic: a gradient that autograd puts into
fresh memory costs two to three times the product that makes it, and one in another order than
its weight is copied on top. Here the product is written straight into a buffer that a
parameter keeps; otherwise the functions behave as autograd does (a second gradient is added).

Conventions
-----------
N
    Layers side by side: models, or models times nodes.
B, I, O
    Columns of the batch, inputs, outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for each layer.

    Parameters
    ----------
    x : Tensor, shape=(N, B, I)
    weight : Tensor, shape=(N, O, I)
        Or with more leading dimensions, whose product is N.
    bias : Tensor, shape=(N, O, 1), optional
        Leading dimensions as the weight's.

    Returns
    -------
    Tensor, shape=(N, B, O)
    """
    out: Tensor = _StackedLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class _StackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.x, ctx.weight, ctx.bias = x, weight, bias
        by_layer = weight.view(-1, *weight.shape[-2:])
        if bias is None:
            return torch.bmm(x, by_layer.mT)
        return torch.baddbmm(bias.view(-1, *bias.shape[-2:]).mT, x, by_layer.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        grad = grad.contiguous()
        write_weight_grad(ctx.weight, grad, ctx.x)
        if ctx.bias is not None:
            write_bias_grad(ctx.bias, grad)
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = torch.bmm(grad, ctx.weight.view(-1, *ctx.weight.shape[-2:]))
        return x_grad, None, None


def write_weight_grad(weight: Tensor, out_grad: Tensor, x: Tensor) -> None:
    """Give a weight its gradient, ``out_grad.T @ x``; shapes (N, B, O) and (N, B, I)."""
    buffer = fresh_grad(weight)
    torch.bmm(out_grad.mT, x, out=buffer.view(-1, *weight.shape[-2:]))
    give_grad(weight, buffer)


def write_bias_grad(bias: Tensor, out_grad: Tensor) -> None:
    """Give a bias its gradient, the sum over the batch; shape (N, B, O)."""
    buffer = fresh_grad(bias)
    torch.sum(out_grad, dim=1, out=buffer.view(len(out_grad), -1))
    give_grad(bias, buffer)


def fresh_grad(parameter: Tensor) -> Tensor:
    """Memory for a gradient of a parameter; hand it back with :func:`give_grad`."""
    if parameter.grad is None:
        kept: Tensor | None = getattr(parameter, "_grad_buffer", None)
        if kept is not None and kept.shape == parameter.shape:
            return kept
    return torch.empty_like(parameter, memory_format=torch.contiguous_format)


def give_grad(parameter: Tensor, grad: Tensor) -> None:
    """Set a parameter's gradient, or add to it."""
    if not parameter.requires_grad:
        return
    if parameter.grad is None:
        parameter.grad = grad
        parameter._grad_buffer = grad  # type: ignore[attr-defined]
    else:
        parameter.grad += grad
