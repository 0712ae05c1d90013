"""Frames for training: decoded ahead in other processes, kept while memory lasts.

Conventions
-----------
row
    Position of a clip in the list this was made with.
box
    What is decoded of a frame: the crop and ``jitter`` pixels on every side, uint8 RGB.
used frames
    Frames of the window that are in a snippet; the others are not decoded.

The first clips that fit into the memory allowed stay there for good. In random order
through an epoch no rule of replacement does better, and none is as simple. The others are
decoded anew each time, a few steps ahead, while the network works.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Condition, Thread

import numpy as np
import numpy.typing as npt

from aqa_pipeline.config import PIXEL_PRESETS, PixelPreset, Protocol
from aqa_pipeline.datasets.locate import LocatedClip
from aqa_pipeline.errors import ClipError, DataError, UsageError
from aqa_pipeline.finetune.draws import ClipView
from aqa_pipeline.media.clip import DecodeTask
from aqa_pipeline.media.decode_pool import DecodePool
from aqa_pipeline.media.snippets import snippet_index

Frames = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]

_STEPS_AHEAD = 2  #: steps whose clips are decoded before they are asked for
_LOOK_SECONDS = 0.5


def crop_jitter(pixels: PixelPreset, wanted: int | None) -> int:
    """How far a crop may lie off the centre, in pixels.

    ``None``: as far as the shorter side of the resized frame leaves room.

    Raises
    ------
    UsageError
        If the frames have no room for it.
    """
    side = pixels.short_side if pixels.size is None else min(pixels.size)
    room = (side - pixels.crop) // 2 if side else 0
    if wanted is not None and wanted > room:
        raise UsageError(
            f"--crop-jitter {wanted}: pixel preset {pixels.name!r} leaves {room} pixels between "
            f"its {pixels.crop}x{pixels.crop} crop and the edge of the frame"
        )
    return room if wanted is None else wanted


def used_frames(protocol: Protocol) -> tuple[IntArray, IntArray]:
    """Which frames of a window are needed, and the snippets as indices into those.

    Returns
    -------
    used : ndarray of int64, shape=(m,)
        Indices into the window, ascending.
    index : ndarray of int64, shape=(snippets, snippet_frames)
        Indices into ``used``.
    """
    whole = snippet_index(protocol.snippet_starts, snippet_frames=protocol.snippet_frames)
    used = np.unique(whole)
    return used, np.searchsorted(used, whole)


def decode_tasks(
    located: Sequence[LocatedClip],
    protocol: Protocol,
    *,
    shift_frames: int,
    jitter: int,
    index_folder: Path,
) -> list[DecodeTask]:
    """One task a clip: the used frames of every shifted window, with the box around the crop."""
    used, _ = used_frames(protocol)
    pixels = PIXEL_PRESETS[protocol.pixels]
    box = dataclasses.replace(pixels, crop=pixels.crop + 2 * jitter)
    return [
        DecodeTask(
            clip_id=item.clip.clip_id,
            video=item.clip.video,
            positions=item.positions[used],
            pixels=box,
            index_folder=index_folder,
            strict_window=False,
            shifts=tuple(range(-shift_frames, shift_frames + 1)),
        )
        for item in located
    ]


def cut(frames: Frames, task: DecodeTask, view: ClipView, *, jitter: int) -> Frames:
    """One view of a decoded clip.

    Parameters
    ----------
    frames : ndarray of uint8, shape=(n, box, box, 3)
        At the positions of ``task.union``.
    task : DecodeTask
    view : ClipView
    jitter : int
        Pixels the box has beyond the crop on every side.

    Returns
    -------
    ndarray of uint8, shape=(m, crop, crop, 3)
        The used frames; C-contiguous. The plain view is what extraction decodes.
    """
    crop = frames.shape[1] - 2 * jitter
    top, left = jitter + view.down, jitter + view.right
    rows = np.searchsorted(task.union, task.positions + view.shift)
    window = frames[rows, top : top + crop, left : left + crop]
    return np.ascontiguousarray(window[:, :, ::-1] if view.flip else window)


class FrameStore:
    """The decoded clips of a training run; a context manager.

    Parameters
    ----------
    tasks : sequence of DecodeTask
        One for each row.
    pool : DecodePool
        Already open.
    memory_bytes : int
        Clips are kept as long as they fit into this.

    Attributes
    ----------
    num_decoded : int
        Clips decoded so far, repeats included.
    """

    def __init__(self, tasks: Sequence[DecodeTask], *, pool: DecodePool, memory_bytes: int) -> None:
        self.tasks = tasks
        self.num_decoded = 0
        self._pool = pool
        self._rows = {task.clip_id: row for row, task in enumerate(tasks)}
        self._free_bytes = memory_bytes
        self._kept: dict[int, Frames] = {}

    @property
    def num_kept(self) -> int:
        return len(self._kept)

    def follow(self, needs: Iterable[Sequence[int]]) -> Generator[dict[int, Frames], None, None]:
        """The boxes of the rows of one step after the other, decoded ahead.

        Raises
        ------
        DataError
            A clip cannot be decoded; it is named.
        """
        needs = list(needs)
        if all(row in self._kept for rows in needs for row in rows):
            for rows in needs:
                yield {row: self._kept[row] for row in rows}
            return
        ahead = _Ahead(self, needs)
        pump = Thread(target=ahead.pump, name="decode ahead", daemon=True)
        pump.start()
        try:
            for step in range(len(needs)):
                yield ahead.take(step)
        finally:
            ahead.stop()
            pump.join()

    def decode(self, runs: Iterator[Sequence[DecodeTask]]) -> Iterator[tuple[int, Frames]]:
        """Rows and boxes as they are decoded; those that fit are kept."""
        for decoded in self._pool.decode(runs):
            if decoded.clip is None:
                error = decoded.error or ClipError(f"{decoded.task.video}: not decoded")
                raise DataError(
                    f"clip {decoded.task.clip_id}: {error}; repair its video or take the clip "
                    "out of the manifest, then type the same command again"
                )
            row, frames = self._rows[decoded.task.clip_id], decoded.clip.frames
            self.num_decoded += 1
            if row not in self._kept and frames.nbytes <= self._free_bytes:
                self._kept[row] = frames
                self._free_bytes -= frames.nbytes
            yield row, frames

    def kept(self, row: int) -> Frames | None:
        return self._kept.get(row)


class _Ahead:
    """The clips of the next few steps: a thread decodes them, the training takes them."""

    def __init__(self, clips: FrameStore, needs: Sequence[Sequence[int]]) -> None:
        self._clips, self._needs = clips, needs
        self._changed = Condition()
        self._next_step = 0  # the first step that nothing was asked for yet
        self._taken = 0  # steps handed out
        self._uses: Counter[int] = Counter()  # rows asked for and not handed out yet
        self._asked: set[int] = set()  # of those, rows in the hands of the pool
        self._ready: dict[int, Frames] = {}
        self._stopped = False
        self._error: BaseException | None = None

    def pump(self) -> None:
        """Decode until every step was served; runs in a thread of its own."""
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(self._may_go_on, timeout=_LOOK_SECONDS)
                    if self._is_over():
                        return
                for row, frames in self._clips.decode(self._runs()):
                    with self._changed:
                        self._asked.discard(row)
                        if self._uses[row]:
                            self._ready[row] = frames
                        self._changed.notify_all()
                        if self._is_over():
                            return
        except BaseException as error:  # noqa: BLE001 - raised where the clips are taken
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _is_over(self) -> bool:
        return self._stopped or self._taken == len(self._needs)

    def _may_go_on(self) -> bool:
        return self._is_over() or self._wants_more()

    def _wants_more(self) -> bool:
        return self._next_step < min(len(self._needs), self._taken + 1 + _STEPS_AHEAD)

    def _runs(self) -> Iterator[list[DecodeTask]]:
        """Clips to decode, one a run; an empty run where the next is not wanted yet."""
        waiting: deque[int] = deque()
        while True:
            with self._changed:
                while not waiting and self._wants_more() and not self._stopped:
                    waiting.extend(self._ask_for_next_step())
                    self._changed.notify_all()
            if waiting:
                yield [self._clips.tasks[waiting.popleft()]]
            else:
                yield []

    def _ask_for_next_step(self) -> list[int]:
        rows = self._needs[self._next_step]
        self._next_step += 1
        lacking = [
            row
            for row in rows
            if self._clips.kept(row) is None and row not in self._ready and row not in self._asked
        ]
        self._uses.update(rows)
        self._asked.update(lacking)
        return lacking

    def take(self, step: int) -> dict[int, Frames]:
        """The clips of a step; waits until they are there."""
        rows = self._needs[step]
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                found = {row: self._find(row) for row in rows}
                if step < self._next_step and all(f is not None for f in found.values()):
                    break
                # With a timeout, or a signal would not be seen while waiting.
                self._changed.wait(_LOOK_SECONDS)
            self._taken = step + 1
            for row in rows:
                self._uses[row] -= 1
                if not self._uses[row]:
                    del self._uses[row]
                    self._ready.pop(row, None)
            self._changed.notify_all()
        return {row: frames for row, frames in found.items() if frames is not None}

    def _find(self, row: int) -> Frames | None:
        kept = self._clips.kept(row)
        return self._ready.get(row) if kept is None else kept

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
