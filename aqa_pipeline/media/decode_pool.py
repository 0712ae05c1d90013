"""Decoding in other processes, each clip under a watchdog.

A decoder can hang, crash, or be killed for its memory, and it must not take the run with
it. Every worker is a process with limits of its own
(:class:`aqa_pipeline.media.sandbox.LimitedProcess`; a *lane*): when a clip breaks a limit, its
process is replaced, and the other lanes never notice. A lane works through *runs* of
neighbouring clips of one video, so that its reader goes forward instead of seeking, and at
most a few decoded clips wait for the network.

Frames come through shared memory (:mod:`aqa_pipeline.media.frame_slots`): a worker writes them
into the slot that came with its task, and only what else there is to say of a clip goes
through a pipe. A slot is used again when the frames are forgotten, or, if its worker died
or was given up, when that is certain to have ended.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from threading import Thread
from typing import Self

from aqa_pipeline.config import ScoreConfig
from aqa_pipeline.errors import ClipError
from aqa_pipeline.media.clip import ClipFrames, DecodeTask, name_video, read_clip
from aqa_pipeline.media.frame_slots import FrameSlots, Slot, SlotAddress, write_frames
from aqa_pipeline.media.sandbox import Answer, LimitedProcess

_log = logging.getLogger(__name__)

_AHEAD = 2  #: clips a lane has in hand: one being decoded, one waiting
_RUN_CLIPS = 16  #: clips after which a run is cut, so that lanes end together
_ATTEMPTS = 2  #: a clip that hung or killed its worker is tried once more, alone
_END_SECONDS = 10.0  #: a process that does not end in this time is left to itself


@dataclass(frozen=True, eq=False)
class Decoded:
    """The end of one task: a clip, or why there is none, after how many attempts."""

    task: DecodeTask
    clip: ClipFrames | None
    error: ClipError | None
    attempts: int


def decode_runs(tasks: Sequence[DecodeTask]) -> list[list[DecodeTask]]:
    """Neighbouring clips of one video together, in ascending order of their windows."""
    order = sorted(tasks, key=lambda t: (str(t.video), t.first, t.clip_id))
    runs: list[list[DecodeTask]] = []
    for task in order:
        if not runs or runs[-1][0].video != task.video or len(runs[-1]) == _RUN_CLIPS:
            runs.append([])
        runs[-1].append(task)
    return runs


@dataclass(eq=False)
class _InHand:
    """A task that a lane's process has, and where its frames are to be written."""

    task: DecodeTask
    attempt: int
    slot: Slot | None


@dataclass(eq=False)
class _Lane:
    """One process, the tasks it has in hand, and the rest of its run.

    ``since`` is when it began the first task in hand, as far as is known here, in seconds.
    """

    process: LimitedProcess
    since: float = 0.0
    run: deque[DecodeTask] = field(default_factory=deque)
    in_hand: deque[_InHand] = field(default_factory=deque)

    def seconds_left(self) -> float:
        """Of the time that the first task in hand has."""
        return max(0.0, self.since + self.process.limit_seconds - time.monotonic())


class DecodePool:
    """Decoding processes; a context manager.

    Parameters
    ----------
    workers : int
        Processes.
    clip_timeout_seconds : float
        A clip that takes longer loses its process.
    decode : callable
        What a worker does with a task: a function of a module, which the caller's main
        module is not.
    shares_memory : bool
        False: whatever frames there are come through the pipes.
    memory_bytes : int
        What decoding may take beyond the bare process.
    """

    def __init__(
        self,
        *,
        workers: int,
        clip_timeout_seconds: float,
        decode: Callable[[DecodeTask], ClipFrames] = read_clip,
        shares_memory: bool = True,
        memory_bytes: int = ScoreConfig.decode_memory_bytes,
    ) -> None:
        self._timeout, self._memory_bytes = clip_timeout_seconds, memory_bytes
        self._decode = decode
        self._slots = FrameSlots() if shares_memory else None
        self._has_told = False
        self._lanes = [_Lane(self._new_process()) for _ in range(workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + _END_SECONDS
        endings = []
        for lane in self._lanes:
            endings.append(self._end(lane.process, [one.slot for one in lane.in_hand]))
            lane.in_hand.clear()
        for ending in endings:
            ending.join(max(0.0, deadline - time.monotonic()))
        if self._slots is not None:
            self._slots.close()

    def lock_pages(self) -> None:
        """Page-lock the shared memory of clips from now on: a GPU takes their frames from it."""
        if self._slots is not None:
            self._slots.lock_pages()

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
            busy = [lane for lane in self._lanes if lane.in_hand]
            if not busy:
                return
            seconds = min(lane.seconds_left() for lane in busy)
            ready = wait([lane.process.connection for lane in busy], timeout=seconds)
            for lane in busy:
                if lane.process.connection in ready or not lane.seconds_left():
                    outcome = self._take(lane)
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
        slot = None if self._slots is None else self._slots.take(task.frame_bytes)
        work = self._decode, task, None if slot is None else slot.address
        try:
            lane.process.send(decode_and_send, work)
        except ClipError:  # it died with nothing in hand, or before it was seen
            self._renew(lane)
            lane.process.send(decode_and_send, work)
        if not lane.in_hand:
            lane.since = time.monotonic()
        lane.in_hand.append(_InHand(task, attempt, slot))

    def _renew(self, lane: _Lane, *slots: Slot | None) -> None:
        """A new process for a lane, which does what the old one had in hand.

        ``slots``: more that the old one may still be writing into.
        """
        in_hand, lane.in_hand = lane.in_hand, deque()
        self._end(lane.process, [*slots, *(one.slot for one in in_hand)])
        lane.process = self._new_process()
        for one in in_hand:
            self._schedule(lane, one.task, attempt=one.attempt)

    def _take(self, lane: _Lane) -> Decoded | None:
        """The lane's first clip; None when it has only begun, or is tried once more."""
        one = lane.in_hand[0]
        try:
            kind, answer = lane.process.receive(0.0)
            lane.since = time.monotonic()
            if kind == Answer.READY:
                return None
            clip = self._received(answer, one.slot) if kind == Answer.DONE else None
        except ClipError as error:
            lane.in_hand.popleft()
            self._renew(lane, one.slot)
            if one.attempt < _ATTEMPTS:
                self._schedule(lane, one.task, attempt=one.attempt + 1)
                return None
            return Decoded(one.task, None, _named(error, one.task), one.attempt)
        lane.in_hand.popleft()
        if clip is not None:
            return Decoded(one.task, clip, None, one.attempt)
        self._give_back(one.slot)
        if not isinstance(answer, ClipError):
            raise answer
        # The video's fault: another attempt would fail alike.
        return Decoded(one.task, None, _named(answer, one.task), one.attempt)

    def _received(self, sent: SentClip, slot: Slot | None) -> ClipFrames:
        if sent.shape is None or slot is None or self._slots is None:
            self._give_back(slot)
            if sent.reason and not self._has_told:
                self._has_told = True
                _log.warning("decoded frames come through a pipe (%s)", sent.reason)
            return sent.clip
        frames = self._slots.frames(slot, sent.shape)
        if frames is None:
            self._slots.give_up("they did not arrive there")
            raise ClipError("its frames did not arrive", stage="worker")
        return replace(sent.clip, frames=frames)

    def _give_back(self, slot: Slot | None) -> None:
        if self._slots is not None:
            self._slots.give_back(slot)

    def _new_process(self) -> LimitedProcess:
        return LimitedProcess(
            memory_bytes=self._memory_bytes,
            seconds=self._timeout,
            frames_fd=None if self._slots is None else self._slots.fd,
            is_helper=True,
        )

    def _end(self, process: LimitedProcess, slots: Sequence[Slot | None]) -> Thread:
        """Kill a process; what it may have written into is free when it has ended.

        That is waited for apart: one that waits for a disk may take its time.
        """
        killed = process.kill()

        def end() -> None:
            if killed is not None:
                killed.wait()
            for slot in slots:
                self._give_back(slot)

        ending = Thread(target=end, name="end of a decoder", daemon=True)
        ending.start()
        return ending


def _named(error: ClipError, task: DecodeTask) -> ClipError:
    """The error with the video's name, and what to do where only time was short."""
    if error.stage == "timeout":
        hint = "raise --clip-timeout if the machine is only slow"
        error = ClipError(f"{error}; {hint}", stage="timeout")
    return name_video(error, task.video)


# --- in a worker --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SentClip:
    """A clip as it comes through the pipe.

    ``shape`` is that of the frames in the slot; None if they came with the clip, and
    ``reason`` then says why.
    """

    clip: ClipFrames
    shape: tuple[int, ...] | None
    reason: str = ""


def decode_and_send(
    work: tuple[Callable[[DecodeTask], ClipFrames], DecodeTask, SlotAddress | None],
) -> SentClip:
    """Decode a task, and put the frames where the main process looks for them."""
    decode, task, slot = work
    clip = decode(task)
    if slot is None or not clip.frames.nbytes:
        return SentClip(clip, None)
    reason = write_frames(slot, clip.frames)
    if reason:
        return SentClip(clip, None, reason)
    return SentClip(replace(clip, frames=clip.frames[:0]), clip.frames.shape)
