"""The frames of one clip of a video that nobody has seen before.

What a network needs of a video, decoded in whichever process is handy: nothing here imports
torch, and request and result can be sent to another process and back.

A clip's frames twice: as the network sees them, and large enough to be looked at.

No torch here: this runs in a limited process (:mod:`aqa_pipeline.media.sandbox`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aqa_pipeline.config import PIXEL_PRESETS, PixelPreset, Protocol
from aqa_pipeline.errors import ClipError
from aqa_pipeline.media.checks import check_index, check_source, check_unchanged
from aqa_pipeline.media.reader import VideoIndex, VideoReader, read_index
from aqa_pipeline.media.snippets import clamp_positions, window_positions

_CHUNK_FRAMES = 64  #: that a stream hands over at once


@dataclass(frozen=True)
class ClipRequest:
    """Which frames are wanted.

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
class ClipFrames:
    """One clip's frames, and where they stand in their video.

    Attributes
    ----------
    video : Path
    frames : ndarray of uint8, shape=(window, crop, crop, 3)
        RGB.
    frame_index : ndarray of int64, shape=(window,)
        Position of each frame.
    pts_seconds : ndarray of float64, shape=(window,)
        When each is shown; NaN for a folder of pictures.
    num_clamped : int
        How many are the video's first or last frame repeated, because the window reaches
        past it.
    video_frames : int
        Length of the whole video.
    """

    video: Path
    frames: npt.NDArray[np.uint8]
    frame_index: npt.NDArray[np.int64]
    pts_seconds: npt.NDArray[np.float64]
    num_clamped: int
    video_frames: int


def read_clip(request: ClipRequest) -> ClipFrames:
    """Decode one clip in this process; what it may cost is limited by the caller.

    Raises
    ------
    ClipError
        If it is no video, cannot be decoded, changes meanwhile, or has no such frames.
    """
    try:
        return _read_clip(request)
    except ClipError as error:
        raise ClipError(
            escape_unprintable(str(error)), stage=error.stage, detail=error.detail
        ) from None


@contextmanager
def prefix_errors_with(video: str | Path) -> Iterator[None]:
    """Put the video's name before an error of a decoding process that died or took too long.

    The process does not know of which video it died.
    """
    try:
        yield
    except ClipError as error:
        if error.stage in ("timeout", "worker"):
            raise ClipError(escape_unprintable(f"{video}: {error}"), stage=error.stage) from None
        raise


def escape_unprintable(text: str) -> str:
    """A text with whatever would break a line, or a terminal, written as an escape.

    The names of files may hold anything.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _read_clip(request: ClipRequest) -> ClipFrames:
    before = check_source(request.video)
    index = read_index(request.video)
    check_index(request.video, index)
    positions = request_positions(request, index)
    frame_index, num_clamped = clamp_positions(positions, video_frames=index.num_frames)
    with VideoReader(request.video, PIXEL_PRESETS[request.protocol.pixels], index=index) as reader:
        window = reader.read(frame_index)
    check_unchanged(request.video, before)
    return ClipFrames(
        video=request.video,
        frames=window.frames,
        frame_index=frame_index,
        pts_seconds=window.pts_seconds,
        num_clamped=num_clamped,
        video_frames=index.num_frames,
    )


def request_positions(request: ClipRequest, index: VideoIndex) -> npt.NDArray[np.int64]:
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
    try:
        yield from _stream_clip(request)
    except ClipError as error:
        raise ClipError(
            escape_unprintable(str(error)), stage=error.stage, detail=error.detail
        ) from None


def _stream_clip(request: ClipRequest) -> Iterator[StreamHead | FrameChunk]:
    before = check_source(request.video)
    index = read_index(request.video)
    check_index(request.video, index)
    start = request.start_frame or 0
    end = min(index.num_frames, request.end_frame or index.num_frames)
    yield StreamHead(start, end, index.num_frames)
    with VideoReader(request.video, PIXEL_PRESETS[request.protocol.pixels], index=index) as reader:
        for first in range(start, end, _CHUNK_FRAMES):
            positions = np.arange(first, min(first + _CHUNK_FRAMES, end), dtype=np.int64)
            window = reader.read(positions)
            yield FrameChunk(first, window.frames, window.pts_seconds)
    check_unchanged(request.video, before)


Frames = npt.NDArray[np.uint8]


SHOWN_PIXELS = 224  #: side of a shown frame: that of most presets, so nothing is decoded twice


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
    with VideoReader(request.video, larger) as reader:
        return ShownClip(clip, reader.read(clip.frame_index).frames)


def read_shown_frames(request: ClipRequest) -> Frames:
    """Decode a clip for the eye alone."""
    return read_shown_clip(request).shown
