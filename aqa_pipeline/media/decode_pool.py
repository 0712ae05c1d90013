"""Decoding in other processes, each clip under a watchdog.

A decoder can hang, crash, or be killed for its memory, and it must not take the run with
it. Every worker is a pool of one process of its own (a *lane*): the pool kills and
replaces that process when its clip takes too long, and the other lanes never notice. A
process that died by itself may have held a lock of its pool, or sent half a message: then
the pool is thrown away with it.
A lane works through *runs* of neighbouring clips of one video, so that its reader goes
forward instead of seeking, and at most a few decoded clips wait for the network.

Frames come through shared memory (:mod:`aqa_pipeline.media.frame_slots`): a worker writes them
into the slot that came with its task, and only what else there is to say of a clip goes
through a pipe. A slot is used again when the frames are forgotten, or, if its worker died
or was given up, when that is certain to have ended.

Spawned processes, one container each, one decoder thread.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import get_context, resource_tracker
from threading import Thread
from types import TracebackType
from typing import Any

from pebble import ProcessExpired, ProcessPool

from aqa_pipeline.errors import ClipError
from aqa_pipeline.media.decode_worker import (
    DecodedClip,
    DecodeTask,
    SentClip,
    decode_and_send,
    decode_clip,
    start_worker,
)
from aqa_pipeline.media.frame_slots import FrameSlots, Slot

__all__ = [
    "DecodePool",
    "DecodeTask",
    "Decoded",
    "DecodedClip",
    "decode_clip",
    "decode_runs",
]

_log = logging.getLogger(__name__)

_AHEAD = 2  #: clips a lane has in hand: one being decoded, one waiting
_RUN_CLIPS = 16  #: clips after which a run is cut, so that lanes end together
_ATTEMPTS = 2  #: a clip that hung or killed its worker is tried once more, alone
_LOOK_SECONDS = 2.0  #: between two looks at whether a pool still works
#: On top of the clip's time: for the start of a process, and the way there and back.
_GRACE_SECONDS = 30.0
_END_SECONDS = 10.0  #: a pool that does not end in this time is left to itself


@dataclass(frozen=True, eq=False)
class Decoded:
    """The end of one task: a clip, or why there is none, after how many attempts."""

    task: DecodeTask
    clip: DecodedClip | None
    error: ClipError | None
    attempts: int


def decode_runs(tasks: Sequence[DecodeTask]) -> list[list[DecodeTask]]:
    """Neighbouring clips of one video together, in ascending order of their windows."""
    order = sorted(tasks, key=lambda t: (str(t.video), int(t.positions[0]), t.clip_id))
    runs: list[list[DecodeTask]] = []
    for task in order:
        if not runs or runs[-1][0].video != task.video or len(runs[-1]) == _RUN_CLIPS:
            runs.append([])
        runs[-1].append(task)
    return runs


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


@dataclass(eq=False)
class _InHand:
    """A task that a lane's pool has, and where its frames are to be written."""

    task: DecodeTask
    attempt: int
    future: Any
    slot: Slot | None


@dataclass
class _Lane:
    """One worker process, the tasks it has in hand, and the rest of its run.

    ``first_since`` is when the first task in hand became the first, in seconds.
    """

    pool: ProcessPool
    first_since: float = 0.0
    run: deque[DecodeTask] = field(default_factory=deque)
    in_hand: deque[_InHand] = field(default_factory=deque)


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
    shares_memory : bool
        False: whatever frames there are come through the pipes.
    """

    def __init__(
        self,
        *,
        workers: int,
        clip_timeout_seconds: float,
        decode: Callable[[DecodeTask], DecodedClip] = decode_clip,
        shares_memory: bool = True,
    ) -> None:
        self._timeout = clip_timeout_seconds
        self._decode = decode
        self._slots = FrameSlots() if shares_memory else None
        self._has_told = False
        self._lanes = [_Lane(self._new_pool()) for _ in range(workers)]

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        deadline = time.monotonic() + _END_SECONDS
        endings = []
        for lane in self._lanes:
            endings.append(self._discard(lane.pool, [one.slot for one in lane.in_hand]))
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
            heads = {lane.in_hand[0].future: lane for lane in self._lanes if lane.in_hand}
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
        slot = self._slots.take(task.frame_bytes) if self._slots is not None else None
        args = [self._decode, task, None if slot is None else slot.address]
        with _interrupts_held():  # the first task starts the process
            try:
                future = lane.pool.schedule(decode_and_send, args=args, timeout=self._timeout)
            except RuntimeError:  # the process died with nothing in hand
                self._renew(lane)
                future = lane.pool.schedule(decode_and_send, args=args, timeout=self._timeout)
        lane.in_hand.append(_InHand(task, attempt, future, slot))

    def _renew(self, lane: _Lane, slot: Slot | None = None) -> None:
        """A new pool for a lane, which does what the old one had in hand and not finished.

        ``slot``: one more that the old pool may still be writing into.
        """
        old, lane.pool = lane.pool, self._new_pool()
        in_hand, lane.in_hand = lane.in_hand, deque()
        is_done = [one.future.done() and one.future.exception() is None for one in in_hand]
        again = [one for one, done in zip(in_hand, is_done, strict=True) if not done]
        self._discard(old, [slot, *(one.slot for one in again)])
        for one, done in zip(in_hand, is_done, strict=True):
            if done:
                lane.in_hand.append(one)
            else:
                self._schedule(lane, one.task, attempt=one.attempt)

    def _is_lost(self, lane: _Lane) -> bool:
        """Whether a lane's first task will never be done: its pool broke, or lost a message."""
        late = time.monotonic() - lane.first_since > self._timeout + _GRACE_SECONDS
        return late or not lane.pool.active

    def _take(self, lane: _Lane) -> Decoded | None:
        """The lane's first clip, which is done; None when it is tried once more."""
        one = lane.in_hand.popleft()
        task, attempt, slot = one.task, one.attempt, one.slot
        lane.first_since = time.monotonic()
        try:
            if not one.future.done():
                raise BrokenProcessPool("it does not answer")
            return Decoded(task, self._received(one.future.result(), slot), None, attempt)
        except TimeoutError:  # its process has ended
            self._give_back(slot)
            error = ClipError(
                f"{task.video}: decoding took longer than {self._timeout:g} s; "
                "raise --clip-timeout if the machine is only slow",
                stage="timeout",
            )
        except (ProcessExpired, BrokenProcessPool) as expired:
            error = ClipError(
                f"{task.video}: the decoding process died ({_death(expired)})", stage="worker"
            )
            self._renew(lane, slot)
        except ClipError as failure:  # the video's fault: another attempt would fail alike
            self._give_back(slot)
            return Decoded(task, None, failure, attempt)
        except Exception:
            self._give_back(slot)
            raise
        if attempt < _ATTEMPTS:
            self._schedule(lane, task, attempt=attempt + 1)
            return None
        return Decoded(task, None, error, attempt)

    def _received(self, sent: SentClip, slot: Slot | None) -> DecodedClip:
        if sent.shape is None or slot is None or self._slots is None:
            self._give_back(slot)
            if sent.reason and not self._has_told:
                self._has_told = True
                _log.warning("decoded frames come through a pipe (%s)", sent.reason)
            return sent.clip
        frames = self._slots.frames(slot, sent.shape)
        if frames is None:
            self._slots.give_up("they did not arrive there")
            raise BrokenProcessPool("its frames did not arrive")
        return replace(sent.clip, frames=frames)

    def _give_back(self, slot: Slot | None) -> None:
        if self._slots is not None:
            self._slots.give_back(slot)

    def _new_pool(self) -> ProcessPool:
        handle = None if self._slots is None else self._slots.handle
        context = get_context("spawn")
        return ProcessPool(1, context=context, initializer=start_worker, initargs=[handle])

    def _discard(self, pool: ProcessPool, slots: Sequence[Slot | None]) -> Thread:
        """Kill a pool's process; what it may have written into is free when it has ended.

        That is waited for apart: a broken pool may never end.
        """
        pool.stop()  # type: ignore[no-untyped-call]

        def end() -> None:
            pool.join()
            for slot in slots:
                self._give_back(slot)

        ending = Thread(target=end, name="end of a pool", daemon=True)
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
