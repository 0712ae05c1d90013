"""Training steps in the form that runs fastest on the device at hand.

On a CPU that is the step itself. On a GPU the two hundred small kernels of a step take longer
to start than to run, so the step is captured once as a CUDA graph. A captured step is used
only where it was seen to be as good: from the same start it must leave the state and return
the losses that the plain step does, and take less time. The trial leaves no trace: parameters
and optimiser are put back afterwards. Where capturing fails, the plain step is used, with a
line in the log.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from aqa_pipeline.errors import first_line

_log = logging.getLogger(__name__)

#: A captured step begins with this many ordinary ones, as torch's manual asks.
_WARM_UP = 3
_TRIAL_STEPS = 10
_COMPARED_STEPS = 4
#: Largest difference of two forms, as a share of the change that the steps make. Additions in
#: another order come to some 1e-5; a step that misses a part differs by 1.
_TOLERANCE = 1e-2
_ROUNDING = 1e-6  #: as a share of a tensor itself, where the steps hardly change it

Batch = Any  # a NamedTuple of tensors and of such NamedTuples
Step = Callable[[Batch], Tensor]


class BrokenCaptureError(RuntimeError):
    """A capture could not be ended: what driver and allocator are left in is not known."""


class StepRunner:
    """Calls a training step, captured where that is faster.

    Parameters
    ----------
    step : callable
        Takes a NamedTuple of tensors or of further ones; changes tensors in place and returns
        the losses.
    state : callable
        Every tensor that ``step`` changes.
    device : torch.device
    """

    #: Of the whole process: False once a capture could not be ended.
    may_capture: ClassVar[bool] = True

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
        """The plain step, or the captured one if it does the same in less time."""
        if not StepRunner.may_capture:
            return self._step
        saved: list[Tensor] = []
        try:
            saved = [tensor.detach().clone() for tensor in self._state()]
            expected = [tensor.clone() for tensor in self._outcome(self._step, batch)]
            plain_seconds = self._seconds(self._step, batch)
            self._put_back(saved)
            fast = captured(self._step, batch, self._device)
            self._put_back(saved)
            found = self._outcome(fast, batch)
            difference = largest_difference(found, expected, saved)
            del found, expected
            fast_seconds = self._seconds(fast, batch)
        except RuntimeError as error:  # torch's own; if the plain step fails, it will fail again
            if isinstance(error, BrokenCaptureError):
                StepRunner.may_capture = False
            _log.warning("training step: plain; its CUDA graph failed: %s", first_line(error))
            return self._step
        finally:
            if saved:
                self._put_back(saved)
        if not difference <= _TOLERANCE:
            _log.warning(
                "training step: plain; its CUDA graph leaves another state (by %.2g of the change)",
                difference,
            )
            return self._step
        best = fast if fast_seconds < plain_seconds else self._step
        _log.info(
            "training step: %s (plain %.2f ms, CUDA graph %.2f ms, states differ by %.1g of the "
            "change)",
            "CUDA graph" if best is fast else "plain",
            1e3 * plain_seconds,
            1e3 * fast_seconds,
            difference,
        )
        return best

    def _outcome(self, step: Step, batch: Batch) -> list[Tensor]:
        """State (not copied) and losses after some steps on two batches by turns."""
        batches = batch, _varied(batch)
        for number in range(_COMPARED_STEPS):
            losses = step(batches[number % 2])
        return [*(tensor.detach() for tensor in self._state()), losses]

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


def largest_difference(
    found: Sequence[Tensor], expected: Sequence[Tensor], before: Sequence[Tensor]
) -> float:
    """Difference of two states as a share of the change from ``before`` to ``expected``.

    Parameters
    ----------
    found, expected : sequence of Tensor
        State after the same steps in two forms; rows (models) are compared one by one.
    before : sequence of Tensor
        The start; may be shorter: what it lacks (losses) began as zeros.

    Returns
    -------
    float
        The largest of all rows; infinite where nothing has changed at all, since a form that
        does nothing could not be told from one that does its work.
    """
    worst = torch.zeros((), dtype=torch.float64, device=expected[0].device)
    moved = torch.zeros_like(worst)
    starts = [*before, *map(torch.zeros_like, expected[len(before) :])]
    for number, tensors in enumerate(zip(found, expected, starts, strict=True)):
        own, other, start = map(_rows, tensors)
        change, error = _length(other - start), _length(own - other)
        share = torch.where(error <= _ROUNDING * _length(other), 0.0, error / change)
        worst = torch.maximum(worst, share.amax())
        if number < len(before):
            moved = torch.maximum(moved, change.amax())
    return float(worst) if float(moved) > 0 else math.inf


def _rows(tensor: Tensor) -> Tensor:
    """(K, ...) -> (K, n); a tensor of one dimension is one row. What is not finite counts as 0."""
    rows = tensor.reshape(len(tensor) if tensor.ndim > 1 else 1, -1)
    return rows.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _length(rows: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return length


def captured(step: Step, batch: Batch, device: torch.device) -> Step:
    """The step as a CUDA graph over copies of ``batch``; runs it some times.

    Raises
    ------
    BrokenCaptureError
        If the capture could not be ended.
    RuntimeError
        Torch's own, if the step cannot be captured or memory runs out.
    """
    static = _copied(batch)
    # Streams belong to the device that is current when they are made.
    with torch.cuda.device(device):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        # A context of our own and not torch.cuda.graph, which leaves its stream the current one
        # if the capture fails.
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                step(static)
            graph, losses = _recorded(step, static)
        torch.cuda.current_stream().wait_stream(side)

    def replay(batch: Batch) -> Tensor:
        for own, given in zip(_tensors(static), _tensors(batch), strict=True):
            own.copy_(given)
        graph.replay()
        return losses

    return replay


def _recorded(step: Step, static: Batch) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Capture on the current stream."""
    # Garbage from an earlier stack must not be freed in the middle: that is no part of a step.
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    collecting = gc.isenabled()
    gc.disable()
    try:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        try:
            losses = step(static)
        except BaseException as error:
            _end(graph, because=error)
            raise
        _end(graph)
    finally:
        if collecting:
            gc.enable()
    return graph, losses


def _end(graph: torch.cuda.CUDAGraph, *, because: BaseException | None = None) -> None:
    try:
        graph.capture_end()
    except RuntimeError as error:
        raise BrokenCaptureError(first_line(because or error)) from error


def _tensors(part: Any) -> list[Tensor]:
    """All tensors of a batch, in order."""
    if isinstance(part, Tensor):
        return [part]
    return [tensor for inner in part for tensor in _tensors(inner)]


def _mapped(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(part, Tensor):
        return change(part)
    return type(part)(*(_mapped(inner, change) for inner in part))


def _copied(part: Any) -> Any:
    return _mapped(part, torch.clone)


def _varied(part: Any) -> Any:
    """The batch with other numbers, so that a form which never reads its batch is found out."""
    return _mapped(part, lambda tensor: 0.9 * tensor if tensor.is_floating_point() else tensor)
