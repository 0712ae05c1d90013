"""A clip's frames twice: as the network sees them, and large enough to be looked at.

No torch here: this runs in a limited process (:mod:`aqa_pipeline.limited_process`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aqa_pipeline.clip_frames import ClipFrames, ClipRequest, read_clip
from aqa_pipeline.config import PIXEL_PRESETS, PixelPreset
from aqa_pipeline.video import VideoReader

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
