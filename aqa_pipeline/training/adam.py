"""Adam for a stack of models, each with its own learning rate and weight decay.

The arithmetic is torch's fused kernel, one call for each run of models that share both, on
views of their rows: a parameter, its gradient and both moments are read once and written once
a step. On a CPU a step of few pairs is bound by memory, so that a large weight is moved as soon
as its gradient is known, before that leaves the processor's cache; all such gradients are
written into the same memory. The small ones have memory of their own and are moved together.
On a GPU one model's kernel fills less than half of the chip, so that runs are moved on several
streams side by side; in a captured step they become branches of the graph. Tested equal to
:class:`torch.optim.Adam`.

Source: Sec. 4.1 (Adam); weight decay is added to the gradient, as in the published program.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aqa_pipeline.heads.linear import Write, give_gradients_to

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_LARGE = 2**16  #: numbers; below, a kernel call costs more than the memory it saves
_BRANCHES = 8  #: streams; a model of 2.5 million numbers is some 50 blocks of a GPU's kernel


class _Run(NamedTuple):
    """Neighbouring models with equal settings: their rows of every parameter and its moments.

    ``gradients`` is the memory for those that :meth:`StackedAdam.take` is given.
    """

    rows: slice
    learning_rate: float
    weight_decay: float
    parameters: list[Tensor]
    gradients: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]


class StackedAdam:
    """One optimiser for K models side by side.

    A step is :meth:`zero_grad`, the backward pass and :meth:`step`. On a CPU each parameter
    may be used once in it by :mod:`aqa_pipeline.heads.linear`. The backward pass moves the
    large ones, so that no other is to be made through them while the optimiser lives.

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
        self._index = {id(p): i for i, p in enumerate(self._parameters)}
        # On a GPU gradients are autograd's own: a captured step keeps their memory.
        self._takes = takes_gradients(self._step.device)
        self._large = {
            i for i, p in enumerate(self._parameters) if self._takes and p.numel() >= _LARGE
        }
        self._taken: set[int] = set()  # parameters whose gradient this step was given
        self._runs: list[_Run] = []
        if self._takes:
            give_gradients_to(self, self._parameters)

    def _lay_out(self) -> None:
        """Memory for the gradients, and each run's views of everything."""
        longest = max((self._parameters[i].numel() for i in self._large), default=0)
        shared = self._parameters[0].detach().new_empty(longest)
        self._gradients = [
            shared[: p.numel()].view_as(p) if i in self._large else torch.empty_like(p)
            for i, p in enumerate(p.detach() for p in self._parameters)
            if self._takes
        ]
        start = 0
        for settings, members in itertools.groupby(self._settings):
            rows = slice(start, start + len(list(members)))
            everything = self._parameters, self._gradients, self._mean, self._square
            of_rows = ([tensor.detach()[rows] for tensor in tensors] for tensors in everything)
            self._runs.append(_Run(rows, *settings, *of_rows))
            start = rows.stop

    def zero_grad(self) -> None:
        """Forget all gradients."""
        if not self._runs:  # the first step, or the first of fewer models
            self._lay_out()
        self._taken.clear()
        for parameter in self._parameters:
            parameter.grad = None

    def take(self, parameter: Tensor, write: Write) -> None:
        """Have a gradient written by ``write``; a large parameter is moved by it at once."""
        i = self._index[id(parameter)]
        if i in self._taken:
            raise RuntimeError("a parameter has a second gradient in one step")
        self._taken.add(i)
        write(self._gradients[i])
        if i in self._large:
            for run in self._runs:
                self._move(run, [i], [run.gradients[i]])

    def step(self) -> None:
        """Move every model by its gradient."""
        moved = self._taken & self._large
        rest = [i for i in range(len(self._parameters)) if i not in moved]
        moves: list[Callable[[], None]] = []
        for run in self._runs:
            gradients = [
                run.gradients[i] if i in self._taken else _grad(self._parameters[i])[run.rows]
                for i in rest
            ]
            moves.append(partial(self._move, run, rest, gradients))
        if len(moves) > 1 and self._step.device.type == "cuda":
            main = torch.cuda.current_stream(self._step.device)
            side_by_side(moves, main, _streams(self._step.device))
        else:
            for move in moves:
                move()
        self._step += 1

    def _move(self, run: _Run, which: list[int], gradients: list[Tensor]) -> None:
        torch._fused_adam_(
            [run.parameters[i] for i in which],
            gradients,
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


def takes_gradients(device: torch.device) -> bool:
    """Whether an optimiser on this device takes gradients out of the backward pass."""
    return device.type == "cpu"


def side_by_side(
    calls: Sequence[Callable[[], None]],
    main: torch.cuda.Stream,
    streams: Sequence[torch.cuda.Stream],
) -> None:
    """Make the calls on several streams, after what ``main`` holds and before what follows.

    None of them may allocate memory on a GPU: it would belong to the stream it was made on.
    """
    streams = streams[: len(calls)]
    for stream in streams:
        stream.wait_stream(main)
    try:
        for number, call in enumerate(calls):
            with torch.cuda.stream(streams[number % len(streams)]):
                call()
    finally:
        for stream in streams:
            main.wait_stream(stream)


@lru_cache
def _streams(device: torch.device) -> list[torch.cuda.Stream]:
    # Made once: a stream cannot be made during a capture.
    return [torch.cuda.Stream(device) for _ in range(_BRANCHES)]  # type: ignore[no-untyped-call]


def _grad(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:  # a parameter that this batch did not reach
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
