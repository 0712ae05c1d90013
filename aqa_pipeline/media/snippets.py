"""Positions of the frames of a clip, and of its snippets.

Index arithmetic only; nothing here opens a file.

Conventions
-----------
position
    0-based place of a frame in presentation order (the file ``00000001.jpg``
    of a frame folder is position 0).
start_frame, end_frame
    Half-open: the clip is ``[start_frame, end_frame)``.
window
    The positions a clip is made of, int64, shape ``(window_frames,)``. Before
    clamping they may lie outside the video.

Source: Sec. 4.1 of the paper ("103 frames ... 10 overlapping snippets, each
containing 16 continuous frames"; JIGSAWS: "160 frames ... 10 non-overlapping");
the exact positions are those of the published program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from aqa_pipeline.errors import DataError

WindowRule = Literal["last", "first", "even"]
IntArray = npt.NDArray[np.int64]


def window_positions(
    rule: WindowRule, *, window_frames: int, start_frame: int, end_frame: int
) -> IntArray:
    """Positions of one clip's frames, before clamping to the video.

    Parameters
    ----------
    rule : {"last", "first", "even"}
        ``last``: the ``window_frames`` before ``end_frame`` (MTL-AQA; the start is
        ignored). ``first``: the ``window_frames`` from ``start_frame`` on (AQA-7).
        ``even``: ``window_frames`` positions evenly spaced from ``start_frame`` to
        ``end_frame - 1``, both included, rounded down (JIGSAWS, FineDiving).
    window_frames : int
        Length of the window, in frames.
    start_frame, end_frame : int
        Half-open clip in positions.

    Returns
    -------
    ndarray of int64, shape=(window_frames,)
        Ascending; may reach outside ``[0, frames of the video)``.

    Raises
    ------
    DataError
        If the clip is empty, the window has no frame or the rule is unknown.
    """
    if window_frames < 1:
        raise DataError(f"a window has at least 1 frame, not {window_frames}")
    if end_frame <= start_frame:
        raise DataError(
            f"empty clip: start_frame {start_frame} is not before end_frame {end_frame} "
            "(end_frame is the first frame after the clip, counted from 0)"
        )
    if rule == "last":
        return np.arange(end_frame - window_frames, end_frame, dtype=np.int64)
    if rule == "first":
        return np.arange(start_frame, start_frame + window_frames, dtype=np.int64)
    if rule == "even":
        # Integer arithmetic: floor(i * span / (n - 1)) is exact, linspace is not.
        steps = np.arange(window_frames, dtype=np.int64)
        span = end_frame - 1 - start_frame
        return start_frame + steps * span // max(window_frames - 1, 1)
    raise DataError(f"unknown window rule {rule!r}; it is one of last, first, even")


def clamp_positions(positions: IntArray, *, video_frames: int) -> tuple[IntArray, int]:
    """Repeat the first or last frame where a window reaches past the video.

    Parameters
    ----------
    positions : ndarray of int64, shape=(n,)
    video_frames : int
        Number of frames the video has.

    Returns
    -------
    frame_index : ndarray of int64, shape=(n,)
        Positions inside ``[0, video_frames)``; positions already inside never shift.
    num_clamped : int
        How many of them had to be moved.

    Raises
    ------
    DataError
        If the video has no frame.
    """
    if video_frames < 1:
        raise DataError("the video has no frame")
    frame_index = np.clip(positions, 0, video_frames - 1)
    return frame_index, int(np.count_nonzero(frame_index != positions))


def snippet_starts(*, window_frames: int, snippet_frames: int, num_snippets: int) -> list[int]:
    """First frame of each snippet inside the window.

    103 frames, 10 snippets of 16 give the published 0, 10, ..., 80, 86 (frame 102
    is never used; other authors take 87). Any other window is covered evenly from
    its first to its last frame, rounded down, which for 160 frames and 10 snippets
    of 16 is the JIGSAWS rule 0, 16, ..., 144.

    Raises
    ------
    DataError
        If a snippet does not fit in the window or there is no snippet.
    """
    if num_snippets < 1 or snippet_frames < 1:
        raise DataError(
            f"need at least one snippet of one frame, not {num_snippets} of {snippet_frames}"
        )
    if snippet_frames > window_frames:
        raise DataError(
            f"a snippet of {snippet_frames} frames does not fit in a window of {window_frames}"
        )
    if (window_frames, snippet_frames, num_snippets) == (103, 16, 10):
        return [0, 10, 20, 30, 40, 50, 60, 70, 80, 86]
    last_start = window_frames - snippet_frames
    return [i * last_start // max(num_snippets - 1, 1) for i in range(num_snippets)]


def snippet_index(starts: Sequence[int], *, snippet_frames: int) -> IntArray:
    """Frames of every snippet, as indices into the window.

    Returns
    -------
    ndarray of int64, shape=(len(starts), snippet_frames)
    """
    return np.asarray(starts, dtype=np.int64)[:, None] + np.arange(snippet_frames, dtype=np.int64)
