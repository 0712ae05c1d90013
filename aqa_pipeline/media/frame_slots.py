"""Shared memory through which decoded frames come from the decoding processes.

Conventions
-----------
slot
    Room for the frames of one clip: whole pages of one file that has no name, mapped by
    the main process and by the decoder that writes into it.
stamp
    Number of one use of a slot. The decoder writes it behind the frames when they are all
    there, and the main process reads it before it looks at them.

The main process lends a slot to a decoder together with the clip to decode, and gets it
back when the last array that looks into it is gone. A slot is lent again only when nobody
can be writing into it or reading from it.

The file exists only as long as somebody has it open, so that nothing is left behind however
a process ends, and its size does not depend on that of ``/dev/shm``. It is inherited by the
decoders when they are started.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import mmap
import os
import struct
import tempfile
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aqa_pipeline.media.page_lock import page_lock, page_unlock

_log = logging.getLogger(__name__)

_STAMP = struct.Struct("<q")
#: Slots that may be in the hands of those who got their frames. Whoever keeps more clips
#: gets copies: every slot costs a file descriptor, and perhaps page-locked memory.
_MOST_HELD = 64
_MOST_MAPPED = 256  #: slots that a decoder keeps mapped

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SlotAddress:
    """What a decoder has to know of a slot: bytes ``offset`` to ``offset + size`` of the file."""

    offset: int
    size: int
    stamp: int


@dataclass(eq=False)
class Slot:
    """A slot as the main process sees it."""

    offset: int
    size: int
    memory: mmap.mmap
    stamp: int = 0
    is_locked: bool = False

    @property
    def address(self) -> SlotAddress:
        return SlotAddress(self.offset, self.size, self.stamp)

    @property
    def memory_address(self) -> int:
        start: int = np.frombuffer(self.memory, np.uint8).__array_interface__["data"][0]
        return start

    def unlock(self) -> None:
        if self.is_locked:
            self.is_locked = False
            page_unlock(self.memory_address)


# --- in the main process ----------------------------------------------------------------


class FrameSlots:
    """Slots of one pool of decoders.

    Where there is no shared memory, or no more of it, :meth:`take` gives None and frames
    have to be sent by other means.

    Attributes
    ----------
    fd : int or None
        The file, to be inherited by decoders.
    """

    def __init__(self) -> None:
        self.fd: int | None = None
        self._stamps = itertools.count(1)
        self._end = 0
        self._locks_pages = False
        self._lends = True
        self._num_held = _Count()
        self._free: list[Slot] = []
        # Arrays die in any thread, and in the middle of anything: appending needs no lock.
        self._returned: deque[Slot] = deque()
        try:
            self.fd = _nameless_file()
        except (OSError, NotImplementedError) as error:
            self.give_up(str(error))

    def give_up(self, reason: str) -> None:
        """Lend no more slots."""
        _log.warning("decoded frames come through pipes, not through shared memory (%s)", reason)
        self._lends = False

    def lock_pages(self) -> None:
        """From now on, page-lock what is lent; see :mod:`aqa_pipeline.media.page_lock`."""
        self._locks_pages = True

    def take(self, nbytes: int) -> Slot | None:
        """A slot for so many bytes of frames, with a new stamp."""
        if not self._lends or self.fd is None:
            return None
        size = _whole_pages(nbytes + _STAMP.size)
        self._free += self._came_back()
        fitting = [slot for slot in self._free if slot.size >= size]
        if fitting:
            # Of equal ones the last one that came back: it may still be in a cache.
            slot = min(reversed(fitting), key=lambda slot: slot.size)
            self._free.remove(slot)
        else:
            if self._free:
                self._remove(self._free.pop())
            try:
                slot = self._new_slot(self.fd, size)
            except (OSError, ValueError) as error:
                self.give_up(f"{nbytes / 1e6:.0f} MB: {error}")
                return None
        slot.stamp = next(self._stamps)
        if self._locks_pages and not slot.is_locked:
            slot.is_locked = self._locks_pages = page_lock(slot.memory_address, slot.size)
        return slot

    def give_back(self, slot: Slot | None) -> None:
        """Nobody writes into the slot or reads from it any more; callable from any thread."""
        if slot is not None:
            self._returned.append(slot)
            if not self._lends:
                self._end_slots()

    def frames(self, slot: Slot, shape: Sequence[int]) -> Frames | None:
        """What a decoder has written into a slot.

        The slot is given back when the array, and all that looks into it, is gone.

        Returns
        -------
        ndarray of uint8, or None
            None: the decoder wrote somewhere else, or has not finished.
        """
        (stamp,) = _STAMP.unpack_from(slot.memory, slot.size - _STAMP.size)
        if stamp != slot.stamp:
            return None
        # All that looks into it keeps this array alive: numpy goes no further back than to
        # the first array over a foreign buffer.
        whole = np.frombuffer(slot.memory, np.uint8, count=int(np.prod(shape)))
        if self._num_held.value >= _MOST_HELD:
            frames = whole.copy().reshape(shape)
            self.give_back(slot)
            return frames
        self._num_held.add(1)
        weakref.finalize(whole, self._let_go, slot).atexit = False
        return whole.reshape(shape)

    def close(self) -> None:
        """Lend no more; what is still looked into stays until it no longer is."""
        self._lends = False
        self._end_slots()
        for slot in self._free:
            slot.unlock()
        self._free.clear()
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def _came_back(self) -> Iterator[Slot]:
        with contextlib.suppress(IndexError):
            while True:
                yield self._returned.popleft()

    def _end_slots(self) -> None:
        for slot in self._came_back():
            slot.unlock()

    def _let_go(self, slot: Slot) -> None:
        self._num_held.add(-1)
        self.give_back(slot)

    def _new_slot(self, fd: int, size: int) -> Slot:
        os.ftruncate(fd, self._end + size)
        # Where memory (or a disk) is short, this says so; a page that cannot be had later
        # kills whoever touches it.
        _allocate(fd, self._end, size)
        slot = Slot(self._end, size, mmap.mmap(fd, size, offset=self._end))
        self._end += size
        return slot

    def _remove(self, slot: Slot) -> None:
        """Give the memory of a slot back; its place in the file is not used again."""
        slot.unlock()
        with contextlib.suppress(OSError, AttributeError):  # not everywhere, not on every disk
            slot.memory.madvise(mmap.MADV_REMOVE)


class _Count:
    """A number that several threads change, also in the middle of one another.

    ``+=`` is not one step, and a lock could be asked for by the thread that has it.
    """

    def __init__(self) -> None:
        self._changes: deque[int] = deque()
        self._value = 0

    def add(self, change: int) -> None:
        self._changes.append(change)

    @property
    def value(self) -> int:
        """Asked for by one thread at a time."""
        while self._changes:
            self._value += self._changes.popleft()
        return self._value


def _nameless_file() -> int:
    if os.name != "posix":
        raise NotImplementedError("open files are not inherited here")
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            return os.memfd_create("aqa-frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _allocate(fd: int, offset: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, offset, size)
        return
    zeros = bytes(1 << 20)
    for first in range(offset, offset + size, len(zeros)):
        os.pwrite(fd, zeros[: offset + size - first], first)


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY


# --- in a decoder -----------------------------------------------------------------------


@dataclass
class _DecoderSide:
    fd: int = -1
    mapped: dict[tuple[int, int], mmap.mmap] = field(default_factory=dict)


_decoder_side = _DecoderSide()


def open_in_decoder(fd: int | None) -> None:
    """Be ready for :func:`write_frames` into an inherited file."""
    _decoder_side.fd = -1 if fd is None else fd
    _decoder_side.mapped.clear()


def write_frames(address: SlotAddress, frames: Frames) -> str:
    """Write frames into a slot.

    Returns
    -------
    str
        Empty, or why they have to be sent by other means.
    """
    end = address.size - _STAMP.size
    if frames.dtype != np.uint8 or frames.nbytes > end:
        return f"{frames.nbytes} bytes of {frames.dtype} instead of {end} of uint8"
    if _decoder_side.fd < 0:
        return "a decoder did not inherit the file"
    try:
        memory = _mapped(address.offset, address.size)
    except (OSError, ValueError) as error:
        return str(error)
    there = np.frombuffer(memory, np.uint8, count=frames.nbytes)
    there.reshape(frames.shape)[...] = frames
    _STAMP.pack_into(memory, end, address.stamp)
    return ""


def _mapped(offset: int, size: int) -> mmap.mmap:
    mapped = _decoder_side.mapped
    if (offset, size) not in mapped:
        if len(mapped) >= _MOST_MAPPED:
            mapped.clear()
        mapped[offset, size] = mmap.mmap(_decoder_side.fd, size, offset=offset)
    return mapped[offset, size]
