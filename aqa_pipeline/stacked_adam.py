"""Adam for a stack of models, each with its own learning rate and weight decay.

The arithmetic is torch's fused kernel, one call for each run of models that share both, on
views of their rows: a parameter, its gradient and both moments are read once and written once
a step. On a CPU a step of few pairs is bound by memory, so that a large weight is moved as soon
as its gradient is known, before that leaves the processor's cache; all such gradients are
written into the same memory. Tested equal to :class:`torch.optim.Adam`.

Source: Sec. 4.1 (Adam); weight decay is added to the gradient, as in the published program.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aqa_pipeline.stacked_linear import Write, give_gradients_to

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_LARGE = 2**16  #: numbers; below, a kernel call costs more than the memory it saves


class _Run(NamedTuple):
    """Neighbouring models with equal settings: their rows of every parameter and moment."""

    rows: slice
    learning_rate: float
    weight_decay: float
    parameters: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]


class StackedAdam:
    """One optimiser for K models side by side.

    A step is :meth:`zero_grad`, the backward pass and :meth:`step`. Each parameter may be
    used once in it by :mod:`aqa_pipeline.stacked_linear`. The backward pass moves the large
    ones, so that no other is to be made through them while the optimiser lives.

    Parameters
    ----------
    parameters : iterable of Parameter
        Each with leading dimension K, contiguous.
    learning_rates, weight_decays : sequence of float, length K
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rates: Sequence[float],
        weight_decays: Sequence[float],
    ) -> None:
        self._parameters = list(parameters)
        self._settings = list(zip(learning_rates, weight_decays, strict=True))
        self._mean = [torch.zeros_like(p) for p in self._parameters]
        self._square = [torch.zeros_like(p) for p in self._parameters]
        # The step in progress. On the device, so that a captured step counts on by itself.
        self._step = torch.ones((), device=self._parameters[0].device)
        self._runs: list[_Run] = []
        self._moved: set[int] = set()  # large parameters, as soon as this step knew their gradient
        self._index = {id(p): i for i, p in enumerate(self._parameters)}
        large = [p for p in self._parameters if p.device.type == "cpu" and p.numel() >= _LARGE]
        longest = max((p.numel() for p in large), default=0)
        self._scratch = self._parameters[0].detach().new_empty(longest)
        give_gradients_to(self, large)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self._moved.clear()
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def take(self, parameter: Tensor, write: Write) -> None:
        """Move a parameter by the gradient that ``write`` writes."""
        i = self._index[id(parameter)]
        if i in self._moved:
            raise RuntimeError("a parameter that has moved in this step has another gradient")
        gradient = self._scratch[: parameter.numel()].view_as(parameter)
        write(gradient)
        self._move([i], [gradient])
        self._moved.add(i)

    @torch.no_grad()
    def step(self) -> None:
        """Move every model by its gradient."""
        rest = [i for i in range(len(self._parameters)) if i not in self._moved]
        if rest:
            self._move(rest, [_grad(self._parameters[i]) for i in rest])
        self._step += 1

    def _move(self, which: list[int], gradients: list[Tensor]) -> None:
        for run in self._runs or self._new_runs():
            torch._fused_adam_(
                [run.parameters[i] for i in which],
                [g[run.rows] for g in gradients],
                [run.means[i] for i in which],
                [run.squares[i] for i in which],
                [],
                [self._step] * len(which),
                lr=run.learning_rate,
                beta1=_BETAS[0],
                beta2=_BETAS[1],
                weight_decay=run.weight_decay,
                eps=_EPSILON,
                amsgrad=False,
                maximize=False,
            )

    def _new_runs(self) -> list[_Run]:
        start = 0
        for settings, members in itertools.groupby(self._settings):
            rows = slice(start, start + len(list(members)))
            of_rows = [
                [tensor[rows] for tensor in tensors]
                for tensors in (self._parameters, self._mean, self._square)
            ]
            self._runs.append(_Run(rows, *settings, *of_rows))
            start = rows.stop
        return self._runs

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all models but these; the parameters themselves are cut by the caller."""
        index = torch.tensor(rows, device=self._step.device)
        self._settings = [self._settings[row] for row in rows]
        self._mean = [m[index] for m in self._mean]
        self._square = [s[index] for s in self._square]
        self._runs = []

    def state(self) -> list[Tensor]:
        """Every tensor that a step changes, beside the parameters."""
        return [*self._mean, *self._square, self._step]


def _grad(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:  # a parameter that this batch did not reach
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
