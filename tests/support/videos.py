"""Small videos whose pictures say which frame they are.

The picture of frame ``i`` is three horizontal bands of flat grey; the top one is grey
level ``4 * i`` for the first 64 frames, and the three together spell ``i`` in base 64.
Four levels between two digits are more than any codec at these settings loses, so
that a test can ask a decoded picture for its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

PIXEL_FORMATS = {"gif": "gray", "mjpeg": "yuvj420p", "png": "rgb24", "ffv1": "yuv444p"}
REORDERING_CODECS = {"libx264", "libx265", "mpeg4"}


def picture(number: int, *, size: tuple[int, int] = (64, 48)) -> npt.NDArray[np.uint8]:
    """Picture of frame ``number``; ``size`` is (width, height); (height, width, 3) uint8."""
    width, height = size
    image = np.empty((height, width, 3), np.uint8)
    for band, rows in enumerate(np.array_split(np.arange(height), 3)):
        image[rows] = number // 64**band % 64 * 4
    return image


def frame_number(image: npt.NDArray[np.uint8]) -> int:
    """The number :func:`picture` wrote, read from a decoded (height, width, 3) picture."""
    height, width = image.shape[:2]
    middle = slice(width // 3, width - width // 3)
    levels = [image[height * part // 6, middle].mean() for part in (1, 3, 5)]
    return sum(int(level / 4 + 0.5) * 64**band for band, level in enumerate(levels))


def frame_numbers(images: Iterable[npt.NDArray[np.uint8]]) -> list[int]:
    """:func:`frame_number` of each picture of a window."""
    return [frame_number(image) for image in images]


def write_video(
    path: Path,
    num_frames: int,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    rate: int = 25,
    gop: int = 12,
    b_frames: int = 2,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    rotation: int = 0,
    container: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode :func:`picture` 0, 1, ..., ``num_frames - 1``.

    ``pts`` gives each frame's time in ``time_base`` units (default: one frame period
    each from 0 on); ``rotation`` is counterclockwise degrees in the display matrix;
    ``container`` and ``options`` go to the muxer and the encoder.
    """
    time_base = time_base or Fraction(1, rate)
    encoder_options = {"libx264": {"preset": "ultrafast", "crf": "12"}, "libx265": {}}
    chosen: dict[str, str] = {
        **encoder_options.get(codec, {}),
        **({"x265-params": "log-level=none", "preset": "ultrafast"} if codec == "libx265" else {}),
        **({"deadline": "realtime", "cpu-used": "8"} if codec.startswith("libvpx") else {}),
        **(options or {}),
    }
    with av.open(str(path), "w", options=container or {}) as output:
        stream: Any = output.add_stream(codec, rate=rate, options=chosen)
        stream.width, stream.height = size
        stream.pix_fmt = PIXEL_FORMATS.get(codec, "yuv420p")
        context = stream.codec_context
        context.time_base = time_base
        context.gop_size = gop
        context.thread_count = 1
        if codec in REORDERING_CODECS:
            context.max_b_frames = b_frames
        if codec not in PIXEL_FORMATS:
            context.bit_rate = 2_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number, size=size), format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts = number if pts is None else pts[number]
            frame.time_base = time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def write_folder(
    folder: Path,
    num_frames: int,
    *,
    first: int = 1,
    pattern: str = "{:08d}.png",
    size: tuple[int, int] = (64, 48),
) -> Path:
    """A folder of numbered pictures; picture 0 is file number ``first``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_frames):
        image = av.VideoFrame.from_ndarray(picture(number, size=size), format="rgb24")
        image.save(folder / pattern.format(first + number))
    return folder
