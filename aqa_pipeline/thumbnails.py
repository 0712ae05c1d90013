"""A few small pictures of a clip, as data that can stand inside a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.image import imsave

from aqa_pipeline.config import PixelPreset, Protocol
from aqa_pipeline.datasets.locate import clip_positions
from aqa_pipeline.datasets.manifest import Clip
from aqa_pipeline.media.reader import VideoReader, read_index
from aqa_pipeline.media.snippets import clamp_positions

#: The same part of the frame as the network's 224 of 256 pixels.
PIXELS = PixelPreset("thumbnail", crop=112, short_side=128)


def thumbnails(clip: Clip, protocol: Protocol, *, count: int, index_folder: Path) -> list[str]:
    """Frames evenly spaced over a clip's window, each a ``data:`` address of a JPEG.

    Parameters
    ----------
    clip : Clip
    protocol : Protocol
        Says which frames are the window.
    count : int
    index_folder : Path
        Where facts about videos are remembered, see
        :func:`aqa_pipeline.media.index.read_index`.

    Raises
    ------
    ClipError
        If the video is not there or cannot be decoded.
    DataError
        If the clip is empty.
    """
    index = read_index(clip.video, index_folder=index_folder)
    window = clip_positions(protocol, clip, video_frames=index.num_frames)
    window, _ = clamp_positions(window, video_frames=index.num_frames)
    chosen = window[np.linspace(0, len(window) - 1, count).round().astype(np.int64)]
    with VideoReader(clip.video, PIXELS, index=index) as reader:
        return [_data_address(frame) for frame in reader.read(chosen).frames]


def _data_address(frame: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    imsave(buffer, frame, format="jpeg", pil_kwargs={"quality": 80})
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
