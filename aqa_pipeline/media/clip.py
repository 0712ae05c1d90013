"""One clip's frames out of a video that nobody has seen before.

Everything that decodes clips comes through :func:`read_clip`, with one set of checks
(:mod:`aqa_pipeline.media.checks`), in a process with limits
(:mod:`aqa_pipeline.media.sandbox`): one alone for a video to be scored, several for a manifest
(:mod:`aqa_pipeline.media.decode_pool`). Requests and results can be sent to another process and
back. No torch here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aqa_pipeline.config import PIXEL_PRESETS, PixelPreset, Protocol
from aqa_pipeline.errors import ClipError
from aqa_pipeline.media.checks import SourceState, check_unchanged, checked_index, source_state
from aqa_pipeline.media.index import VideoIndex
from aqa_pipeline.media.reader import VideoReader
from aqa_pipeline.media.snippets import clamp_positions, window_positions
from aqa_pipeline.media.views import shifted_union

Frames = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]

_CHUNK_FRAMES = 64  #: that a stream hands over at once
SHOWN_PIXELS = 224  #: side of a shown frame: that of most presets, so nothing is decoded twice


@dataclass(frozen=True)
class ClipRequest:
    """A stretch of a video, out of which the protocol's rule cuts the window.

    Attributes
    ----------
    video : Path
        A video file, or a folder of numbered pictures.
    protocol : Protocol
        Says which frames make a window, and their size.
    start_frame, end_frame : int or None
        Half-open positions; None: the first frame, the end of the video.
    """

    video: Path
    protocol: Protocol
    start_frame: int | None = None
    end_frame: int | None = None


@dataclass(frozen=True, eq=False)
class DecodeTask:
    """A clip of a manifest, whose window is known.

    Attributes
    ----------
    clip_id : str
    video : Path
    positions : ndarray of int64, shape=(window_frames,)
        Before clamping, see :mod:`aqa_pipeline.media.snippets`.
    pixels : PixelPreset
    index_folder : Path
        Where indexes of video files are remembered.
    strict_window : bool
        Fail, instead of repeating frames, where the window reaches past the video;
        shifted ones may.
    shifts : tuple of int
        Frames by which the window is moved: all these windows are decoded, each frame
        once.
    """

    clip_id: str
    video: Path
    positions: IntArray
    pixels: PixelPreset
    index_folder: Path
    strict_window: bool
    shifts: tuple[int, ...] = (0,)

    @property
    def first(self) -> int:
        """First position of the window: the order in which clips of one video are read."""
        return int(self.positions[0])

    @property
    def union(self) -> IntArray:
        """Positions of the frames that are decoded, ascending, shape=(m,)."""
        return shifted_union(self.positions, self.shifts)

    @property
    def frame_bytes(self) -> int:
        """Bytes of the frames that are decoded."""
        return len(self.union) * self.pixels.crop**2 * 3


@dataclass(frozen=True, eq=False)
class ClipFrames:
    """One clip's frames, and where they stand in their video.

    Attributes
    ----------
    video : Path
    frames : ndarray of uint8, shape=(window or m, crop, crop, 3)
        RGB: the window of a :class:`ClipRequest`; of a :class:`DecodeTask` the frames at its
        ``union``. From a :class:`.DecodePool` they lie in shared memory, which is used again
        once no array looks into it any more.
    frame_index : ndarray of int64, shape=(window,)
        Position of each frame of the window that is not shifted.
    pts_seconds : ndarray of float64, shape=(window,)
        When each is shown; NaN for a folder of pictures.
    num_clamped : int
        How many are the video's first or last frame repeated, because the window reaches
        past it.
    video_frames : int
        Length of the whole video.
    """

    video: Path
    frames: Frames
    frame_index: IntArray
    pts_seconds: npt.NDArray[np.float64]
    num_clamped: int
    video_frames: int


def name_video(error: ClipError, video: str | Path) -> ClipError:
    """Put the video's name before an error of a decoding process that died or took too long.

    The process does not know of which video it died.
    """
    if error.stage not in ("timeout", "worker"):
        return error
    return ClipError(escape_unprintable(f"{video}: {error}"), stage=error.stage)


@contextmanager
def prefix_errors_with(video: str | Path) -> Iterator[None]:
    """Raise the errors of a block as :func:`name_video` makes them."""
    try:
        yield
    except ClipError as error:
        raise name_video(error, video) from None


def escape_unprintable(text: str) -> str:
    """A text with whatever would break a line, or a terminal, written as an escape.

    The names of files may hold anything.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except ClipError as error:
        raise ClipError(
            escape_unprintable(str(error)), stage=error.stage, detail=error.detail
        ) from None


def read_clip(wanted: ClipRequest | DecodeTask) -> ClipFrames:
    """Decode one clip in this process; what it may cost is limited by the caller.

    The reader of the last video stays open, so that the next clip of it reads on.

    Raises
    ------
    ClipError
        If it is no video, cannot be decoded, changes meanwhile, or has no such frames.
    """
    with _one_line_errors():
        if isinstance(wanted, DecodeTask):
            reader = open_reader(wanted.video, wanted.pixels, index_folder=wanted.index_folder)
            positions, read = wanted.positions, wanted.union
        else:
            reader = open_reader(wanted.video, PIXEL_PRESETS[wanted.protocol.pixels])
            positions = read = request_positions(wanted, reader.index)
        length = reader.index.num_frames
        frame_index, num_clamped = clamp_positions(positions, video_frames=length)
        if num_clamped and isinstance(wanted, DecodeTask) and wanted.strict_window:
            raise ClipError(
                f"{wanted.video}: the window is frames {positions[0]} to {positions[-1]}, "
                f"the video has {length} frames (0 to {length - 1})",
                stage="window",
            )
        frames = reader.read(clamp_positions(read, video_frames=length)[0]).frames
        check_unchanged(wanted.video, _kept.state)
    return ClipFrames(
        video=wanted.video,
        frames=frames,
        frame_index=frame_index,
        pts_seconds=reader.index.pts_seconds(frame_index),
        num_clamped=num_clamped,
        video_frames=length,
    )


class _KeptReader:
    """The reader of the last video, as long as its file stays what it was."""

    def __init__(self) -> None:
        self.reader: VideoReader | None = None
        self.wanted: tuple[str, Path, PixelPreset] | None = None
        self.state: SourceState = None


_kept = _KeptReader()


def open_reader(
    video: Path, pixels: PixelPreset, *, index_folder: Path | None = None
) -> VideoReader:
    """The reader of the last video where it is this one, else a new one after all checks."""
    wanted = (os.getcwd(), video, pixels)  # a path may be meant from elsewhere by now
    if _kept.reader is None or _kept.wanted != wanted or source_state(video) != _kept.state:
        if _kept.reader is not None:
            _kept.reader.close()
            _kept.reader = None
        index, _kept.state = checked_index(video, index_folder=index_folder)
        _kept.reader, _kept.wanted = VideoReader(video, pixels, index=index), wanted
    return _kept.reader


def request_positions(request: ClipRequest, index: VideoIndex) -> IntArray:
    """Window of a request before clamping, shape=(window,).

    Raises
    ------
    ClipError
        If the clip is empty or lies outside the video altogether.
    """
    protocol, length = request.protocol, index.num_frames
    if length < protocol.snippet_frames:
        raise ClipError(
            f"{request.video} has {length} frame{'s' if length > 1 else ''}; a snippet of the "
            f"network is {protocol.snippet_frames} frames",
            stage="window",
        )
    start = request.start_frame or 0
    end = length if request.end_frame is None else request.end_frame
    if start >= length or end <= start:
        raise ClipError(
            f"{request.video}: no frame from {start} to {end} (the end is not included); the video "
            f"has {length} frames, 0 to {length - 1}",
            stage="window",
        )
    positions = window_positions(
        protocol.window_rule,
        window_frames=protocol.window_frames,
        start_frame=start,
        end_frame=end,
    )
    if positions[0] >= length:
        raise ClipError(
            f"{request.video}: frames {positions[0]} to {positions[-1]} are asked for, the video "
            f"has {length} frames, 0 to {length - 1}",
            stage="window",
        )
    return positions


@dataclass(frozen=True)
class StreamHead:
    """What comes before the frames: the stretch that there is, and the video's length."""

    start_frame: int
    end_frame: int
    video_frames: int


@dataclass(frozen=True, eq=False)
class FrameChunk:
    """Some neighbouring frames.

    Attributes
    ----------
    first : int
        Position of the first of them.
    frames : ndarray of uint8, shape=(n, crop, crop, 3)
    pts_seconds : ndarray of float64, shape=(n,)
    """

    first: int
    frames: npt.NDArray[np.uint8]
    pts_seconds: npt.NDArray[np.float64]


def stream_clip(request: ClipRequest) -> Iterator[StreamHead | FrameChunk]:
    """Decode every frame of a stretch, a few at a time; first comes its :class:`StreamHead`.

    Errors as :func:`read_clip`.
    """
    with _one_line_errors():
        index, before = checked_index(request.video)
        start = request.start_frame or 0
        end = min(index.num_frames, request.end_frame or index.num_frames)
        yield StreamHead(start, end, index.num_frames)
        pixels = PIXEL_PRESETS[request.protocol.pixels]
        with VideoReader(request.video, pixels, index=index) as reader:
            for first in range(start, end, _CHUNK_FRAMES):
                positions = np.arange(first, min(first + _CHUNK_FRAMES, end), dtype=np.int64)
                window = reader.read(positions)
                yield FrameChunk(first, window.frames, window.pts_seconds)
        check_unchanged(request.video, before)


@dataclass(frozen=True, eq=False)
class ShownClip:
    """A decoded clip.

    Attributes
    ----------
    clip : ClipFrames
        For the network.
    shown : ndarray of uint8, shape=(window_frames, 224, 224, 3)
        The same part of the same frames.
    """

    clip: ClipFrames
    shown: Frames


def shown_pixels(pixels: PixelPreset) -> PixelPreset:
    """The same part of the frame in :data:`SHOWN_PIXELS` pixels."""
    if pixels.crop == SHOWN_PIXELS:
        return pixels
    factor = SHOWN_PIXELS / pixels.crop
    return dataclasses.replace(
        pixels,
        name=f"{pixels.name}, shown",
        crop=SHOWN_PIXELS,
        short_side=None if pixels.short_side is None else round(pixels.short_side * factor),
        size=None if pixels.size is None else _scaled(pixels.size, factor),
    )


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return round(size[0] * factor), round(size[1] * factor)


def read_shown_clip(request: ClipRequest) -> ShownClip:
    """Decode a clip for the network and for the eye; errors as :func:`read_clip`."""
    clip = read_clip(request)
    pixels = PIXEL_PRESETS[request.protocol.pixels]
    larger = shown_pixels(pixels)
    if larger is pixels:
        return ShownClip(clip, clip.frames)
    index = open_reader(request.video, pixels).index
    with VideoReader(request.video, larger, index=index) as reader:
        return ShownClip(clip, reader.read(clip.frame_index).frames)


def read_shown_frames(request: ClipRequest) -> Frames:
    """Decode a clip for the eye alone."""
    return read_shown_clip(request).shown
