"""The frames of one clip of a video that nobody has seen before.

What a network needs of a video, decoded in whichever process is handy: nothing here imports
torch, and request and result can be sent to another process and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aqa_pipeline.config import PIXEL_PRESETS, Protocol
from aqa_pipeline.errors import ClipError
from aqa_pipeline.snippets import clamp_positions, window_positions
from aqa_pipeline.video import VideoIndex, VideoReader, read_index
from aqa_pipeline.video_checks import check_index, check_source, check_unchanged


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
