"""Upload of the next step's frames to the device, while this step is computed.

A clip's box goes up whole, once, as uint8; the crop and the flip of its view are made on the
device. A thread picks the frames of the next step, page-locks and copies them on a stream of
their own; one step is prepared beside the one under way, no more.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.finetune.draws import ClipView, StepDraw
from aqa_pipeline.media.clip import DecodeTask

Frames = npt.NDArray[np.uint8]


def crop(frames: Tensor, view: ClipView, *, jitter: int) -> Tensor:
    """Crop and flip of a view, as :func:`aqa_pipeline.finetune.frames.cut` makes them.

    Parameters
    ----------
    frames : Tensor of uint8, shape=(m, box, box, 3)
        The used frames, shifted already.
    view : ClipView
    jitter : int
        Pixels the box has beyond the crop on every side.

    Returns
    -------
    Tensor of uint8, shape=(m, crop, crop, 3)
    """
    side = frames.shape[1] - 2 * jitter
    top, left = jitter + view.down, jitter + view.right
    window = frames[:, top : top + side, left : left + side]
    return window.flip(2) if view.flip else window


@dataclass(frozen=True, eq=False)
class UploadedStep:
    """Boxes of one step on the device; called, it gives the views of some of its rows.

    Attributes
    ----------
    boxes : Tensor of uint8, shape=(rows, m, box, box, 3)
    position : mapping of int to int
        Of each row in ``boxes``.
    views : mapping of int to ClipView
    jitter : int
    is_there : torch.cuda.Event or None
        Until then ``boxes`` is not written; None: it is.
    """

    boxes: Tensor
    position: Mapping[int, int]
    views: Mapping[int, ClipView]
    jitter: int
    is_there: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Let the current stream wait for the boxes; returns at once."""
        if self.is_there is not None:
            computing = torch.cuda.current_stream(self.boxes.device)
            computing.wait_event(self.is_there)
            self.boxes.record_stream(computing)

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """Frames of rows in their views, shape=(len(rows), m, crop, crop, 3)."""
        return torch.stack(
            [crop(self.boxes[self.position[r]], self.views[r], jitter=self.jitter) for r in rows]
        )


class Uploads:
    """Puts the boxes of steps on a device, one step ahead.

    Parameters
    ----------
    tasks : sequence of DecodeTask
        One for each row.
    jitter : int
        Pixels the boxes have beyond the crop on every side.
    device : torch.device
        A GPU; on a CPU, where tests run it, nothing is copied beside the computing.
    """

    def __init__(self, tasks: Sequence[DecodeTask], *, jitter: int, device: torch.device) -> None:
        self._tasks, self._jitter, self._device = tasks, jitter, device
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def ahead(
        self, draws: Sequence[StepDraw], boxes: Iterator[Mapping[int, Frames]]
    ) -> Generator[UploadedStep, None, None]:
        """The steps one after the other.

        Parameters
        ----------
        draws : sequence of StepDraw
        boxes : iterator of mapping
            Decoded boxes of each step, (n, box, box, 3) at the positions of a task's union;
            asked in a thread. It can be closed once this is.

        Yields
        ------
        UploadedStep
            Ready for the current stream.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="upload ahead") as thread:
            pending = thread.submit(self._next, draws[0], boxes) if draws else None
            for following in [*draws[1:], None]:
                if pending is None:
                    return
                step = pending.result()
                pending = None
                if following is not None:
                    pending = thread.submit(self._next, following, boxes)
                step.wait()
                yield step

    def _next(self, draw: StepDraw, boxes: Iterator[Mapping[int, Frames]]) -> UploadedStep:
        return self.upload(draw, next(boxes))

    def upload(self, draw: StepDraw, boxes: Mapping[int, Frames]) -> UploadedStep:
        """Put the boxes of one step on the device; does not wait for the copy."""
        if self._copies is None:
            return self._uploaded(draw, boxes, pin=False)
        # The stream of this thread from here on, and the device whose context page-locks.
        with torch.cuda.stream(self._copies):
            step = self._uploaded(draw, boxes, pin=True)
            is_there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            is_there.record(self._copies)
        return replace(step, is_there=is_there)

    def _uploaded(self, draw: StepDraw, boxes: Mapping[int, Frames], *, pin: bool) -> UploadedStep:
        rows = list(boxes)
        num_frames, side = len(self._tasks[rows[0]].positions), boxes[rows[0]].shape[1]
        shape = (len(rows), num_frames, side, side, 3)
        host = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
        for number, row in enumerate(rows):
            task = self._tasks[row]
            index = np.searchsorted(task.union, task.positions + draw.views[row].shift)
            # "clip" writes straight into the result; every index is there.
            np.take(boxes[row], index, axis=0, out=host[number].numpy(), mode="clip")
        # The allocator of page-locked memory keeps ``host`` until the copy is done.
        there = host.to(self._device, non_blocking=True)
        position = {row: number for number, row in enumerate(rows)}
        return UploadedStep(there, position, draw.views, self._jitter)
