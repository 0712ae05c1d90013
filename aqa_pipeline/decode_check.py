"""A self-test of this machine's decoder: encode a tiny video, read it back to the frame."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np

from aqa_pipeline.config import PixelPreset
from aqa_pipeline.errors import ClipError, SetupError
from aqa_pipeline.media.reader import VideoReader

_FRAMES = 24
_SIDE = 64
_GREY_STEP = 8  #: frame i is grey level 8 i, further apart than the codec blurs them
_CODECS = ("libx264", "mpeg4")  #: both reorder frames; the second comes with every FFmpeg


def check_decoder() -> str:
    """Encode a few grey frames with B-frames and decode a window from the middle.

    Returns
    -------
    str
        What did it, such as ``"libx264, PyAV 18.0.0, libavcodec 62.11.100"``.

    Raises
    ------
    SetupError
        The video cannot be written or read, or other frames came out than were asked for.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="aqa-doctor-") as folder:
            path = Path(folder) / "grey.mp4"
            codec = _encode(path)
            asked = np.arange(7, 15)
            with VideoReader(path, PixelPreset("check", crop=_SIDE, short_side=_SIDE)) as reader:
                frames = reader.read(asked).frames  # (8, side, side, 3)
    except (ClipError, OSError, ValueError) as error:
        raise SetupError(f"a video of {_FRAMES} frames: {error}") from error
    found = np.rint(frames.mean(axis=(1, 2, 3)) / _GREY_STEP).astype(int)
    if (found != asked).any():
        raise SetupError(f"asked for frames {asked.tolist()}, the decoder gave {found.tolist()}")
    version = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"{codec}, PyAV {av.__version__}, libavcodec {version}"


def _encode(path: Path) -> str:
    codec = next(name for name in _CODECS if name in av.codecs_available)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width = stream.height = _SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.max_b_frames = 2
        stream.codec_context.thread_count = 1
        for number in range(_FRAMES):
            pixels = np.full((_SIDE, _SIDE, 3), _GREY_STEP * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return codec
