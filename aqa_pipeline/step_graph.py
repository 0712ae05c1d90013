"""A training step as it runs fastest on the device at hand.

On a CPU that is the step itself. On a GPU the two hundred small kernels of a step take longer
to start than to run, so the step is captured once as a CUDA graph, or compiled by
torch.compile; a short trial on the first full batch decides which of the three stays. The
trial leaves no trace: parameters and optimiser are put back afterwards. What a device cannot
do is left out, with a line in the log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

#: A captured step begins with this many ordinary ones, as torch's manual asks.
_WARM_UP = 3
_TRIAL_STEPS = 20

Batch = Any  # a NamedTuple of tensors and of such NamedTuples
Step = Callable[[Batch], Tensor]


class StepRunner:
    """Calls a training step, captured or compiled where that is faster.

    Parameters
    ----------
    step : callable
        Takes a NamedTuple of tensors or of further ones; changes tensors in place and returns
        the losses.
    state : callable
        Every tensor that ``step`` changes.
    device : torch.device
    """

    def __init__(
        self, step: Step, *, state: Callable[[], Sequence[Tensor]], device: torch.device
    ) -> None:
        self._step, self._state, self._device = step, state, device
        self._shapes: list[torch.Size] | None = None
        self._fast: Step = step

    def __call__(self, batch: Batch) -> Tensor:
        if self._device.type != "cuda":
            return self._step(batch)
        shapes = [tensor.shape for tensor in _tensors(batch)]
        if self._shapes is None:
            self._shapes, self._fast = shapes, self._choose(batch)
        # A graph replays its shapes alone; the last batch of an epoch may be smaller.
        return self._fast(batch) if shapes == self._shapes else self._step(batch)

    def forget(self) -> None:
        """The stack has changed: capture anew at the next step."""
        self._shapes, self._fast = None, self._step

    def _choose(self, batch: Batch) -> Step:
        saved = [tensor.detach().clone() for tensor in self._state()]
        candidates: dict[str, Callable[[], Step]] = {
            "plain": lambda: self._step,
            "CUDA graph": lambda: captured(self._step, batch),
            "torch.compile": lambda: torch.compile(self._step),
        }
        seconds: dict[str, float] = {}
        made: dict[str, Step] = {}
        for name, make in candidates.items():
            try:
                made[name] = make()
                seconds[name] = self._seconds(made[name], batch)
            except (RuntimeError, OSError, ImportError) as error:  # torch's own are RuntimeErrors
                _log.info("training step as %s is left out: %s", name, _first_line(error))
            self._put_back(saved)
        if not seconds:  # not even the plain step ran: let its own error be seen
            return self._step
        best = min(seconds, key=lambda name: seconds[name])
        _log.info(
            "training step: %s (%s)",
            best,
            ", ".join(f"{name} {1e3 * s:.2f} ms" for name, s in seconds.items()),
        )
        return made[best]

    def _seconds(self, step: Step, batch: Batch) -> float:
        for _ in range(_WARM_UP):
            step(batch)
        torch.cuda.synchronize(self._device)
        started = time.perf_counter()
        for _ in range(_TRIAL_STEPS):
            step(batch)
        torch.cuda.synchronize(self._device)
        return (time.perf_counter() - started) / _TRIAL_STEPS

    @torch.no_grad()
    def _put_back(self, saved: Sequence[Tensor]) -> None:
        for tensor, value in zip(self._state(), saved, strict=True):
            tensor.copy_(value)


def captured(step: Step, batch: Batch) -> Step:
    """The step as a CUDA graph over copies of ``batch``."""
    static = _copied(batch)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            step(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses = step(static)

    def replay(batch: Batch) -> Tensor:
        for own, given in zip(_tensors(static), _tensors(batch), strict=True):
            own.copy_(given)
        graph.replay()
        return losses

    return replay


def _tensors(part: Any) -> list[Tensor]:
    """All tensors of a batch, in order."""
    if isinstance(part, Tensor):
        return [part]
    return [tensor for inner in part for tensor in _tensors(inner)]


def _copied(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part.clone()
    return type(part)(*map(_copied, part))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
