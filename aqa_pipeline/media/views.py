"""Views: augmented copies of a clip, cached so that stage two can augment as the paper does.

Conventions
-----------
shift
    Frames by which the whole window moves, later in the video if positive.
flip
    Mirrored left to right, every frame of the clip alike.

Source: the published program (MTL-AQA): training clips are shifted by -3..3 frames and
flipped with probability 0.5; test clips are neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

ViewSet = Literal["none", "flip", "full"]
VIEW_SETS: tuple[ViewSet, ...] = ("none", "flip", "full")


@dataclass(frozen=True)
class View:
    """One way to look at a clip.

    Attributes
    ----------
    shift : int
        In frames.
    flip : bool
    """

    shift: int = 0
    flip: bool = False

    @property
    def name(self) -> str:
        """``plain``, ``flip``, ``shift-3``, ``shift+1-flip``, ..."""
        if not self.shift:
            return "flip" if self.flip else "plain"
        return f"shift{self.shift:+d}" + ("-flip" if self.flip else "")


PLAIN = View()


def views_of(kind: ViewSet, *, shift_frames: int) -> tuple[View, ...]:
    """The views of a set, the plain one first.

    Parameters
    ----------
    kind : {"none", "flip", "full"}
        ``none``: the plain view alone; ``flip``: and its mirror image; ``full``: every
        shift up to ``shift_frames`` either way, each also flipped.
    shift_frames : int
        Of the protocol; 0: ``full`` is ``flip``.
    """
    if kind == "none":
        return (PLAIN,)
    shifts = [0]
    if kind == "full":
        shifts += [s for s in range(-shift_frames, shift_frames + 1) if s]
    return tuple(View(shift, flip) for shift in shifts for flip in (False, True))


def shifted_union(positions: npt.NDArray[np.int64], shifts: Sequence[int]) -> npt.NDArray[np.int64]:
    """Every position that one of the shifted windows uses, ascending, each once.

    Parameters
    ----------
    positions : ndarray of int64, shape=(window_frames,)
        The plain window.
    shifts : sequence of int

    Returns
    -------
    ndarray of int64, shape=(m,)
    """
    return np.unique(positions[None, :] + np.asarray(shifts, dtype=np.int64)[:, None])


def cut_view(
    frames: npt.NDArray[np.uint8],
    view: View,
    *,
    positions: npt.NDArray[np.int64],
    union: npt.NDArray[np.int64],
) -> npt.NDArray[np.uint8]:
    """One view out of the frames of all shifted windows.

    Parameters
    ----------
    frames : ndarray of uint8, shape=(m, height, width, 3)
        Frame ``i`` stands at position ``union[i]``.
    view : View
        Its shift is one of those the union was made with.
    positions : ndarray of int64, shape=(window_frames,)
        The plain window.
    union : ndarray of int64, shape=(m,)
        See :func:`shifted_union`.

    Returns
    -------
    ndarray of uint8, shape=(window_frames, height, width, 3)
        C-contiguous. Without mirroring, and where no frame lies between those of the
        window, it is part of ``frames`` and no copy.
    """
    rows = np.searchsorted(union, positions + view.shift)
    is_stretch = bool(len(rows)) and bool((np.diff(rows) == 1).all())
    window = frames[rows[0] : rows[-1] + 1] if is_stretch else frames[rows]
    if view.flip:
        # Half the time of copying window[:, :, ::-1].
        window = window.take(np.arange(window.shape[2])[::-1], axis=2)
    return np.ascontiguousarray(window)
