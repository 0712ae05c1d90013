"""Frames as something a browser shows: JPEG, PNG, and a small H.264 film.

Conventions
-----------
frames : ndarray of uint8, shape=(n, H, W, 3)
    RGB.
data address
    ``data:image/jpeg;base64,...``: a picture inside a page that loads nothing.
"""

from __future__ import annotations

import base64
import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from matplotlib.image import imsave

Frames = npt.NDArray[np.uint8]

JPEG, PNG, MP4 = "image/jpeg", "image/png", "video/mp4"

_QUALITY = "24"  #: constant rate factor: a clip of 103 frames of 224 pixels is some 100 kB
_KEYFRAME_EVERY = 8  #: frames; a slider jumps quickly between keyframes


def data_address(content: bytes, media_type: str) -> str:
    """Content as an address that a page can hold."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def jpeg(frame: Frames) -> bytes:
    """One frame, shape=(H, W, 3)."""
    buffer = io.BytesIO()
    imsave(buffer, frame, format="jpeg", pil_kwargs={"quality": 80})
    return buffer.getvalue()


def png(frame: Frames) -> bytes:
    """One frame, shape=(H, W, 3), without loss."""
    buffer = io.BytesIO()
    imsave(buffer, frame, format="png")
    return buffer.getvalue()


def mp4(frames: Frames, *, frames_per_second: float) -> bytes:
    """A film that every browser plays.

    Odd sizes lose their last row or column: 4:2:0 pictures have even ones.
    """
    height, width = (size // 2 * 2 for size in frames.shape[1:3])
    rate = Fraction(frames_per_second).limit_denominator(1001)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(
            "libx264", rate=rate, options={"crf": _QUALITY, "preset": "veryfast"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = _KEYFRAME_EVERY
        stream.codec_context.thread_count = 1
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(picture[:height, :width]), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def side_by_side(*films: Frames, gap: int = 8) -> Frames:
    """Films of equal length and height beside each other, a white gap between them."""
    count, height = films[0].shape[:2]
    bar = np.full((count, height, gap, 3), 255, np.uint8)
    pieces: list[Frames] = []
    for film in films:
        pieces += [film, bar]
    return np.concatenate(pieces[:-1], axis=2)
