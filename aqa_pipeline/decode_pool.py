"""Decoding in other processes, each clip under a watchdog.

A decoder can hang, crash, or be killed for its memory, and it must not take the run with
it. Every worker is a pool of one process of its own (a *lane*): the pool kills and
replaces that process when its clip takes too long, and the other lanes never notice. A
process that died by itself may have held a lock of its pool, or sent half a message: then
the pool is thrown away with it.
A lane works through *runs* of neighbouring clips of one video, so that its reader goes
forward instead of seeking, and at most a few decoded clips wait for the network.

Spawned processes, one container each, one decoder thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import wait as wait_for_handles
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from pebble import ProcessExpired, ProcessPool

from aqa_pipeline.config import PixelPreset
from aqa_pipeline.errors import ClipError
from aqa_pipeline.snippets import clamp_positions
from aqa_pipeline.views import shifted_union

_AHEAD = 2  #: clips a lane has in hand: one being decoded, one waiting
_RUN_CLIPS = 16  #: clips after which a run is cut, so that lanes end together
_ATTEMPTS = 2  #: a clip that hung or killed its worker is tried once more, alone
_LOOK_SECONDS = 2.0  #: between two looks at whether a pool still works
#: On top of the clip's time: for the start of a process, and the way there and back.
_GRACE_SECONDS = 30.0
#: Added to a worker's niceness: where cores are few, the network keeps them.
_NICER = 5
_END_SECONDS = 10.0  #: a pool that does not end in this time is left to itself


@dataclass(frozen=True, eq=False)
class DecodeTask:
    """One clip to decode.

    Attributes
    ----------
    clip_id : str
    video : Path
    positions : ndarray of int64, shape=(window_frames,)
        Before clamping, see :mod:`aqa_pipeline.snippets`.
    shifts : tuple of int
        Frames by which the window is moved: all these windows are decoded, each frame
        once.
    pixels : PixelPreset
    index_folder : Path
        Where indexes of video files are remembered.
    strict_window : bool
        Fail, instead of repeating frames, where the window reaches past the video;
        shifted ones may.
    """

    clip_id: str
    video: Path
    positions: npt.NDArray[np.int64]
    pixels: PixelPreset
    index_folder: Path
    strict_window: bool
    shifts: tuple[int, ...] = (0,)

    @property
    def union(self) -> npt.NDArray[np.int64]:
        """Positions of the frames that are decoded, ascending, shape=(m,)."""
        return shifted_union(self.positions, self.shifts)


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """One clip's frames.

    Attributes
    ----------
    frames : ndarray of uint8, shape=(m, crop, crop, 3)
        Those at the positions of :attr:`DecodeTask.union`.
    pts_seconds : ndarray of float64, shape=(window_frames,)
        Of the window that is not shifted.
    num_clamped : int
        Frames of that window that are the video's first or last one repeated.
    video_frames : int
        Length of the whole video.
    """

    frames: npt.NDArray[np.uint8]
    pts_seconds: npt.NDArray[np.float64]
    num_clamped: int
    video_frames: int


@dataclass(frozen=True, eq=False)
class Decoded:
    """The end of one task: a clip, or why there is none, after how many attempts."""

    task: DecodeTask
    clip: DecodedClip | None
    error: ClipError | None
    attempts: int


#: In a worker: the reader of the last video, kept open so that the next clip reads on.
_open_reader: list[tuple[PixelPreset, Any]] = []


def decode_clip(task: DecodeTask) -> DecodedClip:
    """Decode one clip in this process; the reader of the last video stays open.

    Raises
    ------
    ClipError
        The video cannot be opened or decoded, or the window reaches past it and
        ``strict_window`` is set.
    """
    from aqa_pipeline.video import VideoReader, read_index

    pixels, reader = _open_reader[0] if _open_reader else (None, None)
    if reader is None or reader.path != task.video or pixels != task.pixels:
        while _open_reader:
            _open_reader.pop()[1].close()
        index = read_index(task.video, index_folder=task.index_folder)
        reader = VideoReader(task.video, task.pixels, index=index)
        _open_reader.append((task.pixels, reader))
    video_frames = reader.index.num_frames
    frame_index, num_clamped = clamp_positions(task.positions, video_frames=video_frames)
    if num_clamped and task.strict_window:
        raise ClipError(
            f"{task.video}: the window is frames {task.positions[0]} to {task.positions[-1]}, "
            f"the video has {video_frames} frames (0 to {video_frames - 1})",
            stage="window",
        )
    union, _ = clamp_positions(task.union, video_frames=video_frames)
    frames = reader.read(union).frames
    return DecodedClip(frames, reader.index.pts_seconds(frame_index), num_clamped, video_frames)


def decode_runs(tasks: Sequence[DecodeTask]) -> list[list[DecodeTask]]:
    """Neighbouring clips of one video together, in ascending order of their windows."""
    order = sorted(tasks, key=lambda t: (str(t.video), int(t.positions[0]), t.clip_id))
    runs: list[list[DecodeTask]] = []
    for task in order:
        if not runs or runs[-1][0].video != task.video or len(runs[-1]) == _RUN_CLIPS:
            runs.append([])
        runs[-1].append(task)
    return runs


def _start_worker() -> None:
    """Make way for the network; end as soon as the parent does, even in a hung decode."""
    if hasattr(os, "nice"):
        os.nice(_NICER)
    parent = parent_process()
    if parent is None:
        return

    def wait_for_its_end() -> None:
        wait_for_handles([parent.sentinel])
        os._exit(1)

    Thread(target=wait_for_its_end, name="parent", daemon=True).start()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes and threads started inside never see Ctrl-C; this thread does, after it.

    Ctrl-C reaches the whole process group, and the main process decides what stops when.
    A worker cannot see to that itself: it would come too late for the seconds of its start.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Its start would let the signal through again in the middle of ours.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class _Lane:
    """One worker process, the tasks it has in hand, and the rest of its run.

    ``first_since`` is when the first task in hand became the first, in seconds.
    """

    pool: ProcessPool
    first_since: float = 0.0
    run: deque[DecodeTask] = field(default_factory=deque)
    in_hand: deque[tuple[DecodeTask, int, Any]] = field(default_factory=deque)


class DecodePool:
    """Decoding processes; a context manager.

    Parameters
    ----------
    workers : int
        Processes.
    clip_timeout_seconds : float
        A clip that takes longer loses its process.
    decode : callable
        What a worker does with a task; replaced in tests.
    """

    def __init__(
        self,
        *,
        workers: int,
        clip_timeout_seconds: float,
        decode: Callable[[DecodeTask], DecodedClip] = decode_clip,
    ) -> None:
        self._timeout = clip_timeout_seconds
        self._decode = decode
        self._lanes = [_Lane(_new_pool()) for _ in range(workers)]

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        deadline = time.monotonic() + _END_SECONDS
        for ending in [_discard(lane.pool) for lane in self._lanes]:
            ending.join(max(0.0, deadline - time.monotonic()))

    def decode(self, runs: Iterable[Sequence[DecodeTask]]) -> Iterator[Decoded]:
        """Decode all runs; yields clips as they are done, each lane's in order.

        Decoding goes on while the caller works on what it was given, never more than a
        few clips ahead of it. A run is only asked for when a lane is free for it, the
        first ones before this returns.
        """
        waiting = iter(runs)
        for lane in self._lanes:
            self._fill(lane, waiting)
        return self._decoded(waiting)

    def _decoded(self, waiting: Iterator[Sequence[DecodeTask]]) -> Iterator[Decoded]:
        while True:
            for lane in self._lanes:
                self._fill(lane, waiting)
            heads = {lane.in_hand[0][2]: lane for lane in self._lanes if lane.in_hand}
            if not heads:
                return
            done, _ = wait(heads, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
            for future in done or [f for f in heads if self._is_lost(heads[f])]:
                outcome = self._take(heads[future])
                if outcome is not None:
                    yield outcome

    def _fill(self, lane: _Lane, waiting: Iterator[Sequence[DecodeTask]]) -> None:
        while len(lane.in_hand) < _AHEAD:
            if not lane.run:
                lane.run = deque(next(waiting, ()))
            if not lane.run:
                return
            self._schedule(lane, lane.run.popleft(), attempt=1)

    def _schedule(self, lane: _Lane, task: DecodeTask, *, attempt: int) -> None:
        if not lane.in_hand:
            lane.first_since = time.monotonic()
        with _interrupts_held():  # the first task starts the process
            try:
                future = lane.pool.schedule(self._decode, args=[task], timeout=self._timeout)
            except RuntimeError:  # the process died with nothing in hand
                self._renew(lane)
                future = lane.pool.schedule(self._decode, args=[task], timeout=self._timeout)
        lane.in_hand.append((task, attempt, future))

    def _renew(self, lane: _Lane) -> None:
        """A new pool for a lane, which does what the old one had in hand and not finished."""
        _discard(lane.pool)
        lane.pool = _new_pool()
        in_hand, lane.in_hand = lane.in_hand, deque()
        for task, attempt, future in in_hand:
            if future.done() and future.exception() is None:
                lane.in_hand.append((task, attempt, future))
            else:
                self._schedule(lane, task, attempt=attempt)

    def _is_lost(self, lane: _Lane) -> bool:
        """Whether a lane's first task will never be done: its pool broke, or lost a message."""
        late = time.monotonic() - lane.first_since > self._timeout + _GRACE_SECONDS
        return late or not lane.pool.active

    def _take(self, lane: _Lane) -> Decoded | None:
        """The lane's first clip, which is done; None when it is tried once more."""
        task, attempt, future = lane.in_hand.popleft()
        lane.first_since = time.monotonic()
        try:
            if not future.done():
                raise BrokenProcessPool("it does not answer")
            return Decoded(task, future.result(), None, attempt)
        except TimeoutError:
            error = ClipError(
                f"{task.video}: decoding took longer than {self._timeout:g} s; "
                "raise --clip-timeout if the machine is only slow",
                stage="timeout",
            )
        except (ProcessExpired, BrokenProcessPool) as expired:
            error = ClipError(
                f"{task.video}: the decoding process died ({_death(expired)})", stage="worker"
            )
            self._renew(lane)
        except ClipError as failure:  # the video's fault: another attempt would fail alike
            return Decoded(task, None, failure, attempt)
        if attempt < _ATTEMPTS:
            self._schedule(lane, task, attempt=attempt + 1)
            return None
        return Decoded(task, None, error, attempt)


def _new_pool() -> ProcessPool:
    return ProcessPool(max_workers=1, context=get_context("spawn"), initializer=_start_worker)


def _discard(pool: ProcessPool) -> Thread:
    """Kill a pool's process. Its end is waited for apart: a broken pool may never end."""
    pool.stop()  # type: ignore[no-untyped-call]
    ending = Thread(target=pool.join, name="end of a pool", daemon=True)
    ending.start()
    return ending


def _death(expired: ProcessExpired | BrokenProcessPool) -> str:
    if isinstance(expired, BrokenProcessPool):
        return str(expired) or "no exit code"
    code = expired.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", out of memory?" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return f"exit code {code}"
