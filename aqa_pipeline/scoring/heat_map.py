"""Heat on every frame from Grad-CAM maps of snippets, and its picture.

Conventions
-----------
cam : ndarray of float32, shape=(S, T', H', W')
    See :mod:`aqa_pipeline.scoring.grad_cam`; in points, above 0 what raises the score.
heat : ndarray of float32, shape=(window_frames, H', W')
    In units of the clip's hottest position: -1..1, one of the ends being reached.
place in time
    Map position t of a snippet stands for an equal part of its frames; its value belongs
    to the middle of that part, and between two middles it changes linearly. A frame of
    several snippets gets their mean, a frame of none (the published snippets leave out the
    last one) the heat of the frame before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

FloatArray = npt.NDArray[np.float32]
Frames = npt.NDArray[np.uint8]

#: What raises the score is painted in the first colour, what lowers it in the second; RGB,
#: told apart by colour-blind eyes too.
RAISES, LOWERS = (255, 138, 0), (0, 150, 255)
_OPAQUE = 0.75  #: of the hottest position
_VISIBLE = 0.15  #: below this part of the hottest, nothing is painted


def frame_heat(
    cam: FloatArray, *, snippet_starts: Sequence[int], snippet_frames: int, window_frames: int
) -> FloatArray:
    """Heat of every frame of the window, shape=(window_frames, H', W')."""
    times = cam.shape[1]
    # Middle of each map position, in frames from the snippet's first.
    middles = (np.arange(times) + 0.5) * snippet_frames / times - 0.5
    frames = np.arange(snippet_frames)
    # (snippet_frames, T'): how much of each map position a frame takes.
    share = np.stack([np.interp(frames, middles, row) for row in np.eye(times)], axis=1)
    total = np.zeros((window_frames, *cam.shape[2:]))
    count = np.zeros(window_frames)
    for own, start in zip(cam, snippet_starts, strict=True):
        total[start : start + snippet_frames] += np.tensordot(share, own, axes=1)
        count[start : start + snippet_frames] += 1
    seen = np.flatnonzero(count)
    # The last seen frame at or before each frame; the first seen one before that.
    nearest = seen[np.maximum(np.searchsorted(seen, np.arange(window_frames), "right") - 1, 0)]
    heat = total[nearest] / count[nearest, None, None]
    hottest = np.abs(heat).max()
    result: FloatArray = (heat / hottest if hottest > 0 else heat).astype(np.float32)
    return result


def painted(frames: Frames, heat: FloatArray) -> Frames:
    """Frames with their heat painted over them; same shape, (n, H, W, 3) uint8.

    The picture is greyed first, so that the two colours are the only ones.
    """
    height, width = frames.shape[1:3]
    large = F.interpolate(
        torch.from_numpy(heat).unsqueeze(1), size=(height, width), mode="bicubic"
    )  # (n, 1, H, W)
    smooth = large.squeeze(1).clamp(-1, 1).numpy()
    strength = np.clip((np.abs(smooth) - _VISIBLE) / (1 - _VISIBLE), 0, 1) * _OPAQUE
    grey = frames @ np.array([0.299, 0.587, 0.114], np.float32)  # (n, H, W)
    colour = np.where((smooth > 0)[..., None], _colour(RAISES), _colour(LOWERS))
    mixed = grey[..., None] * (1 - strength[..., None]) + colour * strength[..., None]
    picture: Frames = mixed.round().clip(0, 255).astype(np.uint8)
    return picture


def _colour(rgb: tuple[int, int, int]) -> FloatArray:
    return np.array(rgb, np.float32)
