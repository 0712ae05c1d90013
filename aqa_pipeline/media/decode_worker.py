"""The decoding of one clip, and what the processes that do it send back.

Frames go into a slot of shared memory (:mod:`aqa_pipeline.media.frame_slots`), all else through
the pipe of the pool (:mod:`aqa_pipeline.media.decode_pool`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from multiprocessing.connection import wait as wait_for_handles
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt

from aqa_pipeline.config import PixelPreset
from aqa_pipeline.errors import ClipError
from aqa_pipeline.media.frame_slots import SlotAddress, SlotsHandle, open_in_decoder, write_frames
from aqa_pipeline.media.snippets import clamp_positions
from aqa_pipeline.media.views import shifted_union

#: Added to a worker's niceness: where cores are few, the network keeps them.
_NICER = 5


@dataclass(frozen=True, eq=False)
class DecodeTask:
    """One clip to decode.

    Attributes
    ----------
    clip_id : str
    video : Path
    positions : ndarray of int64, shape=(window_frames,)
        Before clamping, see :mod:`aqa_pipeline.media.snippets`.
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

    @property
    def frame_bytes(self) -> int:
        """Bytes of the frames that are decoded."""
        return len(self.union) * self.pixels.crop**2 * 3


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """One clip's frames.

    Attributes
    ----------
    frames : ndarray of uint8, shape=(m, crop, crop, 3)
        Those at the positions of :attr:`DecodeTask.union`. From a :class:`DecodePool` they
        lie in shared memory, which is used again once no array looks into it any more.
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
class SentClip:
    """A clip as it comes through the pipe.

    ``shape`` is that of the frames in the slot; None if they came with the clip, and
    ``reason`` then says why.
    """

    clip: DecodedClip
    shape: tuple[int, ...] | None
    reason: str = ""


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
    from aqa_pipeline.media.reader import VideoReader, read_index

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


def decode_and_send(
    decode: Callable[[DecodeTask], DecodedClip], task: DecodeTask, slot: SlotAddress | None
) -> SentClip:
    """What a worker does: decode, and put the frames where the main process looks for them."""
    clip = decode(task)
    if slot is None or not clip.frames.nbytes:
        return SentClip(clip, None)
    reason = write_frames(slot, clip.frames)
    if reason:
        return SentClip(clip, None, reason)
    return SentClip(replace(clip, frames=clip.frames[:0]), clip.frames.shape)


def start_worker(slots: SlotsHandle | None) -> None:
    """Make way for the network; end as soon as the parent does, even in a hung decode."""
    open_in_decoder(slots)
    if hasattr(os, "nice"):
        os.nice(_NICER)
    parent = parent_process()
    if parent is None:
        return

    def wait_for_its_end() -> None:
        wait_for_handles([parent.sentinel])
        os._exit(1)

    Thread(target=wait_for_its_end, name="parent", daemon=True).start()
