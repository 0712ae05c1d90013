"""Decode exactly the frames asked for, from a video file or a folder of pictures.

Conventions
-----------
position
    0-based place of a frame in presentation order (:mod:`aqa_pipeline.media.index`).
window
    The frames of one clip: resized, cropped, RGB uint8, ``(n, crop, crop, 3)``.

Each frame is resized and cropped as it leaves the decoder, so that one window is all the
memory a reader needs, however long the video.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

from aqa_pipeline.config import PixelPreset
from aqa_pipeline.errors import ClipError
from aqa_pipeline.media.checks import check_picture
from aqa_pipeline.media.decoder import FileFrames, FolderFrames, FrameSource
from aqa_pipeline.media.index import IntArray, VideoIndex, read_index

__all__ = ["VideoIndex", "VideoReader", "Window", "read_index"]


@dataclass(frozen=True)
class Window:
    """The decoded frames of one clip.

    Attributes
    ----------
    frames : ndarray of uint8, shape=(n, crop, crop, 3)
        RGB. Read-only, because the reader keeps it for an overlapping next window.
    pts_seconds : ndarray of float64, shape=(n,)
        Presentation time of each frame; NaN where the source has no time (a frame
        folder).
    """

    frames: npt.NDArray[np.uint8]
    pts_seconds: npt.NDArray[np.float64]


class VideoReader:
    """Windows of one video, best asked for in ascending order.

    Parameters
    ----------
    path : Path
        A video file, or a folder of numbered jpg or png pictures.
    pixels : PixelPreset
        How a frame is resized and cropped.
    index : VideoIndex or None
        What :func:`read_index` gave for ``path``; made here if None.

    Attributes
    ----------
    index : VideoIndex
    num_decoded : int
        Frames that came out of the decoder so far, wanted or not.

    Raises
    ------
    ClipError
        ``open`` or ``index``, see :func:`read_index`.
    """

    def __init__(self, path: Path, pixels: PixelPreset, *, index: VideoIndex | None = None) -> None:
        self.path = path
        self.index = read_index(path) if index is None else index
        self._crop = _Crop(pixels)
        self._source: FrameSource = (
            FolderFrames(path) if path.is_dir() else FileFrames(path, self.index)
        )
        self._kept_index: IntArray = np.empty(0, np.int64)
        self._kept = np.empty((0, pixels.crop, pixels.crop, 3), np.uint8)

    @property
    def num_decoded(self) -> int:
        return self._source.num_decoded

    def read(self, frame_index: IntArray) -> Window:
        """Decode one window.

        Parameters
        ----------
        frame_index : ndarray of int64, shape=(n,)
            Positions, ascending, repeats allowed.

        Returns
        -------
        Window

        Raises
        ------
        ClipError
            ``window``: positions outside the video or not ascending. ``decode``: the
            video is damaged between the keyframe this window starts from and its last
            frame; other windows of the same video may still be read.
        """
        self._check(frame_index)
        shape = (len(frame_index), *self._kept.shape[1:])
        frames = np.empty(shape, np.uint8)
        wanted = np.unique(frame_index)
        is_kept = np.isin(wanted, self._kept_index)
        for position in wanted[is_kept]:
            kept = self._kept[np.searchsorted(self._kept_index, position)]
            frames[frame_index == position] = kept
        for position, frame in self._source.frames(wanted[~is_kept].tolist()):
            frames[frame_index == position] = self._crop(
                frame, where=f"{self.path}, frame {position}"
            )
        frames.flags.writeable = False
        self._kept_index, self._kept = frame_index.copy(), frames
        return Window(frames=frames, pts_seconds=self.index.pts_seconds(frame_index))

    def _check(self, frame_index: IntArray) -> None:
        num_frames = self.index.num_frames
        if frame_index.ndim != 1 or len(frame_index) == 0 or (np.diff(frame_index) < 0).any():
            raise ClipError(
                f"{self.path}: a window is a non-empty list of ascending positions", stage="window"
            )
        if frame_index[0] < 0 or frame_index[-1] >= num_frames:
            raise ClipError(
                f"{self.path}: frames {frame_index[0]} to {frame_index[-1]} are asked for, but the "
                f"video has frames 0 to {num_frames - 1}",
                stage="window",
            )

    def close(self) -> None:
        """Close the file; frames that were read stay valid."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def planes_are_equal(frame: av.VideoFrame, *, width: int, height: int) -> bool:
    """Whether resizing to planes of one colour gives the same numbers as to RGB pixels.

    It takes half the time. libswscale computes both alike, to the bit, for the common
    formats when the width is odd (even ones share a colour between two pixels) and the
    height is not enlarged.
    """
    is_same_size = (frame.width, frame.height) == (width, height)
    is_common = frame.format.name in ("yuv420p", "yuvj420p")
    return is_common and width % 2 == 1 and height <= frame.height and not is_same_size


def _plane(plane: Any) -> npt.NDArray[np.uint8]:
    """One colour, (height, bytes a line): lines may be longer than the picture is wide."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)


class _Crop:
    """Resize, rotate as the metadata say and crop one frame."""

    def __init__(self, pixels: PixelPreset) -> None:
        self._pixels = pixels
        self._scaler = VideoReformatter()

    def __call__(self, frame: av.VideoFrame, *, where: str) -> npt.NDArray[np.uint8]:
        """(crop, crop, 3) RGB uint8."""
        quarter_turns = round(frame.rotation / 90) % 4  # counterclockwise
        is_turned = quarter_turns % 2 == 1
        shown = (frame.height, frame.width) if is_turned else (frame.width, frame.height)
        check_picture(*shown, where=where)  # of a folder, each may have a size of its own
        width, height = self._resized(*shown)
        crop = self._pixels.crop
        if min(width, height) < crop:
            raise ClipError(
                f"{where}: {width}x{height} pixels after resizing, too small for the "
                f"{crop}x{crop} crop of pixel preset {self._pixels.name!r}",
                stage="decode",
            )
        in_planes = not quarter_turns and planes_are_equal(frame, width=width, height=height)
        resized = self._scaler.reformat(
            frame,
            width=height if is_turned else width,
            height=width if is_turned else height,
            format="gbrp" if in_planes else "rgb24",
            interpolation=Interpolation.BILINEAR,
            threads=1,
        )
        top, left = (height - crop) // 2, (width - crop) // 2
        if in_planes:
            green, blue, red = (_plane(plane) for plane in resized.planes)
            part = slice(top, top + crop), slice(left, left + crop)
            return np.stack([red[part], green[part], blue[part]], axis=-1)
        image: npt.NDArray[Any] = np.rot90(resized.to_ndarray(), quarter_turns)
        return image[top : top + crop, left : left + crop]

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self._pixels.size is not None:
            return self._pixels.size
        short = self._pixels.short_side
        if short is None:
            return width, height
        shorter = min(width, height)
        return round(width * short / shorter), round(height * short / shorter)
