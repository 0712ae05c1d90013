"""Slots of shared memory: whose they are when, what is in them, and what is left of them."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aqa_pipeline.media import frame_slots, page_lock
from aqa_pipeline.media.frame_slots import FrameSlots, Slot, open_in_decoder, write_frames

Frames = npt.NDArray[np.uint8]


def clip(number: int, nbytes: int = 5000) -> Frames:
    return np.random.default_rng(number).integers(0, 256, (nbytes // 10, 10), dtype=np.uint8)


@pytest.fixture
def slots() -> Iterator[FrameSlots]:
    """This process is main process and decoder at once; the two sides map the file apart."""
    slots = FrameSlots()
    open_in_decoder(slots.fd)
    yield slots
    open_in_decoder(None)
    slots.close()


def taken(slots: FrameSlots, nbytes: int) -> Slot:
    slot = slots.take(nbytes)
    assert slot is not None
    return slot


def sent(slots: FrameSlots, slot: Slot, frames: Frames) -> Frames:
    assert write_frames(slot.address, frames) == ""
    found = slots.frames(slot, frames.shape)
    assert found is not None
    return found


def test_frames_arrive_and_a_slot_is_lent_again_only_when_nothing_looks_into_it(
    slots: FrameSlots,
) -> None:
    slot = taken(slots, 5000)
    frames = sent(slots, slot, clip(1))
    assert np.array_equal(frames, clip(1))
    part = frames[3:5, ::2].T.reshape(-1)[1:]  # a copy: reshape had to
    tensor = torch.from_numpy(frames[7:9])
    view = frames[7:9].view(np.int8).reshape(-1)
    del frames, part
    assert taken(slots, 5000) is not slot
    del tensor
    assert taken(slots, 5000) is not slot
    del view
    assert taken(slots, 5000) is slot


def test_a_larger_clip_gets_a_larger_slot_and_the_memory_of_the_small_one_goes_back(
    slots: FrameSlots,
) -> None:
    assert slots.fd is not None
    small = taken(slots, 1_000_000)
    slots.give_back(small)
    held = os.fstat(slots.fd).st_blocks
    large = taken(slots, 3_000_000)
    assert large.size >= 3_000_000
    grown = os.fstat(slots.fd).st_blocks - held
    assert grown * 512 == large.size - small.size
    assert np.array_equal(sent(slots, large, clip(3, 3_000_000)), clip(3, 3_000_000))


def test_what_was_written_elsewhere_or_not_at_all_is_no_clip(slots: FrameSlots) -> None:
    slot = taken(slots, 5000)
    assert slots.frames(slot, (500, 10)) is None
    other = taken(slots, 5000)
    write_frames(other.address, clip(1))
    assert slots.frames(slot, (500, 10)) is None
    old = slot.address
    slots.give_back(slot)
    slot = taken(slots, 5000)
    write_frames(old, clip(1))  # a decoder that was given up, and woke up
    assert slots.frames(slot, (500, 10)) is None


def test_a_decoder_says_why_it_cannot_write(slots: FrameSlots) -> None:
    slot = taken(slots, 5000)
    assert "bytes of uint8 instead of" in write_frames(slot.address, clip(1, 9000))
    floats = clip(1).astype(np.float32)
    assert "float32" in write_frames(slot.address, floats)  # type: ignore[arg-type]
    open_in_decoder(None)
    assert "did not inherit" in write_frames(slot.address, clip(1))


def test_without_memory_files_a_file_without_a_name_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError("a sandbox")

    monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    slots = FrameSlots()
    open_in_decoder(slots.fd)
    slot = taken(slots, 2_500_000)
    assert np.array_equal(sent(slots, slot, clip(4, 2_500_000)), clip(4, 2_500_000))
    assert os.fstat(slots.fd).st_blocks * 512 >= slot.size  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    slots.close()
    open_in_decoder(None)


def test_where_memory_ends_frames_have_to_come_by_other_means(
    monkeypatch: pytest.MonkeyPatch, slots: FrameSlots, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    first = taken(slots, 5000)
    frames = sent(slots, first, clip(1))
    monkeypatch.setattr(frame_slots, "_allocate", full)
    assert slots.take(15_500_000) is None
    assert "through pipes, not through shared memory (16 MB: [Errno 28] No space" in caplog.text
    assert slots.take(5000) is None
    assert np.array_equal(frames, clip(1)), "what was there stays"


def test_a_hoarder_gets_copies(slots: FrameSlots) -> None:
    hoard = [sent(slots, taken(slots, 5000), clip(n)) for n in range(frame_slots._MOST_HELD + 10)]
    assert all(np.array_equal(frames, clip(n)) for n, frames in enumerate(hoard))
    assert len({frames.__array_interface__["data"][0] for frames in hoard}) == len(hoard)
    assert os.fstat(slots.fd).st_size <= (frame_slots._MOST_HELD + 1) * 8192  # type: ignore[arg-type]
    del hoard[5]
    shared = sent(slots, taken(slots, 5000), clip(5))
    assert shared.base is not None
    assert not shared.base.flags.owndata


def test_frames_outlive_the_slots() -> None:
    slots = FrameSlots()
    open_in_decoder(slots.fd)
    frames = sent(slots, taken(slots, 5000), clip(1))
    slots.close()
    open_in_decoder(None)
    assert np.array_equal(frames, clip(1))
    assert slots.take(5000) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["lend", "write", "read", "drop", "lose", "found"]),
            st.integers(0, 7),
            st.sampled_from([100, 5000, 9000, 20_000]),
        ),
        max_size=80,
    )
)
def test_no_frames_ever_change_while_somebody_has_them(
    steps: list[tuple[str, int, int]],
) -> None:
    slots = FrameSlots()
    open_in_decoder(slots.fd)
    lent: list[tuple[Slot, Frames, bool]] = []
    read: list[tuple[Frames, Frames]] = []
    lost: list[Slot] = []  # a decoder that nobody can be sure of has them, and writes
    for number, (what, which, nbytes) in enumerate(steps):
        if what == "lend":
            lent.append((taken(slots, nbytes), clip(number, nbytes), False))
        elif what == "found" and lost:
            slots.give_back(lost.pop(which % len(lost)))
        elif what == "drop" and read:
            del read[which % len(read)]
        elif lent and what in ("write", "read", "lose"):
            slot, frames, _ = lent.pop(which % len(lent))
            if what == "lose":
                lost.append(slot)
                continue
            found = sent(slots, slot, frames)
            if what == "read":
                read.append((found, frames))
        for slot in lost:
            write_frames(slot.address, clip(number, 100))
        in_use = [slot.offset for slot, _, _ in lent] + [slot.offset for slot in lost]
        assert len(set(in_use)) == len(in_use)
        for found, frames in read:
            assert np.array_equal(found, frames)
    open_in_decoder(None)
    slots.close()


class Cuda:
    """Stands for CUDA's runtime: what is page-locked, and what it answers."""

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer
        self.locked: dict[int, int] = {}

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        if not self.answer:
            assert address not in self.locked
            self.locked[address] = nbytes
        return self.answer

    def cudaHostUnregister(self, address: int) -> int:
        del self.locked[address]
        return 0


def test_slots_are_page_locked_once_and_unlocked_when_nobody_needs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Cuda()
    monkeypatch.setattr(page_lock, "_cuda", lambda: cuda)
    slots = FrameSlots()
    open_in_decoder(slots.fd)
    early = sent(slots, taken(slots, 5000), clip(1))
    assert page_lock.pinned_tensor_of(early) is None
    slots.lock_pages()
    slot = taken(slots, 5000)
    frames = sent(slots, slot, clip(2))
    assert cuda.locked == {slot.memory_address: slot.size}
    for part in (frames, frames[3:9]):
        tensor = page_lock.pinned_tensor_of(part)
        assert tensor is not None
        assert np.shares_memory(tensor.numpy(), part)
    assert page_lock.pinned_tensor_of(frames[:, ::2]) is None
    assert page_lock.pinned_tensor_of(frames.copy()) is None
    del frames, part, tensor
    assert taken(slots, 5000) is slot, "and not page-locked anew, which would fail"
    slots.give_back(slot)
    larger = sent(slots, taken(slots, 50_000), clip(3, 50_000))
    assert len(cuda.locked) == 1, "the smaller slot was given up"
    slots.close()
    assert len(cuda.locked) == 1, "somebody may be uploading it"
    assert page_lock.pinned_tensor_of(larger) is not None
    del larger
    assert not cuda.locked
    assert not page_lock._locked
    open_in_decoder(None)


def test_a_refusal_to_page_lock_is_told_once_and_costs_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, slots: FrameSlots
) -> None:
    monkeypatch.setattr(page_lock, "_cuda", lambda: Cuda(answer=2))
    slots.lock_pages()
    for number in range(3):
        frames = sent(slots, taken(slots, 5000), clip(number))
        assert np.array_equal(frames, clip(number))
        assert page_lock.pinned_tensor_of(frames) is None
    assert caplog.text.count("not page-locked (cudaHostRegister: error 2)") == 1
