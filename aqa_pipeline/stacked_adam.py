"""Adam for a stack of models, each with its own learning rate and weight decay.

The arithmetic is torch's fused kernel, one call for each run of models that share both, on
views of their rows: a parameter, its gradient and both moments are read once and written once
a step. Tested equal to :class:`torch.optim.Adam`.

Source: Sec. 4.1 (Adam); weight decay is added to the gradient, as in the published program.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from aqa_pipeline.stacked_linear import write_in_place

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class StackedAdam:
    """One optimiser for K models side by side.

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
        write_in_place(self._parameters)
        self._settings = list(zip(learning_rates, weight_decays, strict=True))
        self._mean = [torch.zeros_like(p) for p in self._parameters]
        self._square = [torch.zeros_like(p) for p in self._parameters]
        # On the device, so that a captured step counts on by itself.
        self._step = torch.zeros((), device=self._parameters[0].device)

    def zero_grad(self) -> None:
        """Forget all gradients; their memory is used again."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every model by its gradient."""
        self._step += 1
        for rows, (learning_rate, weight_decay) in self._runs():
            torch._fused_adam_(
                [p[rows] for p in self._parameters],
                [_grad(p)[rows] for p in self._parameters],
                [m[rows] for m in self._mean],
                [s[rows] for s in self._square],
                [],
                [self._step] * len(self._parameters),
                lr=learning_rate,
                beta1=_BETAS[0],
                beta2=_BETAS[1],
                weight_decay=weight_decay,
                eps=_EPSILON,
                amsgrad=False,
                maximize=False,
            )

    def _runs(self) -> Iterable[tuple[slice, tuple[float, float]]]:
        """Neighbouring models with equal settings, as slices."""
        start = 0
        for settings, members in itertools.groupby(self._settings):
            end = start + len(list(members))
            yield slice(start, end), settings
            start = end

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all models but these; the parameters themselves are cut by the caller."""
        index = torch.tensor(rows, device=self._step.device)
        self._settings = [self._settings[row] for row in rows]
        self._mean = [m[index] for m in self._mean]
        self._square = [s[index] for s in self._square]

    def state(self) -> list[Tensor]:
        """Every tensor that a step changes, beside the parameters."""
        return [*self._mean, *self._square, self._step]


def _grad(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:  # a parameter that this batch did not reach
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
