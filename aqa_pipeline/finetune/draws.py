"""Draws of an epoch: pairs, their order, and the view of each clip.

Conventions
-----------
row
    Position of a clip in the training split.
view
    Shift, flip and crop of one clip, the same for all of its frames.

All draws of an epoch are a function of the seed and the epoch's number. So there is no
generator whose state would have to be kept: whoever knows (seed, epoch, step) goes on
exactly where another process stopped, and every process of several draws the same.

Source: Sec. 3.1 and 4.1; the published program shifts by -3..3 frames (MTL-AQA), flips half
of the clips and crops at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aqa_pipeline.core.pairs import GroupTable

IntArray = npt.NDArray[np.int64]

_STREAM = 1  # apart from the draw of the validation part, which is [seed, 0]


@dataclass(frozen=True)
class ClipView:
    """How a clip is looked at.

    Attributes
    ----------
    shift : int
        In frames; later in the video if positive.
    flip : bool
        Mirrored left to right.
    down, right : int
        Where the crop lies off the centre, in pixels.
    """

    shift: int = 0
    flip: bool = False
    down: int = 0
    right: int = 0


PLAIN_VIEW = ClipView()


@dataclass(frozen=True)
class Augmentation:
    """What views are drawn from.

    Attributes
    ----------
    shift_frames : int
        Shifts of up to this many frames either way.
    flip : bool
        Whether half of the clips are mirrored.
    jitter : int
        The crop lies up to this many pixels off the centre, in each direction.
    """

    shift_frames: int = 0
    flip: bool = False
    jitter: int = 0

    def draw(self, rng: np.random.Generator, count: int) -> list[ClipView]:
        """Views of ``count`` clips."""
        shift = rng.integers(-self.shift_frames, self.shift_frames + 1, size=count)
        flip = rng.random(count) < 0.5
        offset = rng.integers(-self.jitter, self.jitter + 1, size=(count, 2))
        return [
            ClipView(int(s), bool(f) and self.flip, int(down), int(right))
            for s, f, (down, right) in zip(shift, flip, offset, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class StepDraw:
    """The pairs of one step.

    Attributes
    ----------
    pairs : ndarray of int64, shape=(P, 2)
        Rows of both clips; each pair is trained in both orders.
    views : dict of int to ClipView
        Of every row in ``pairs``: a clip has one view in a step, however many pairs it is in.
    """

    pairs: IntArray
    views: dict[int, ClipView]


def draw_epoch(
    fit: IntArray,
    groups: IntArray,
    *,
    batch_size: int,
    augmentation: Augmentation,
    seed: int,
    epoch: int,
) -> list[StepDraw]:
    """Each clip once as a query, in random order, with another one of its exemplar group.

    A clip alone in its group is paired with itself, as in the published program.

    Parameters
    ----------
    fit : ndarray of int64, shape=(n,)
        Rows to learn from.
    groups : ndarray of int64, shape=(N,)
        Exemplar group of every clip of the training split.
    batch_size : int
        Pairs a step; the last one may have fewer.
    augmentation : Augmentation
    seed, epoch : int

    Returns
    -------
    list of StepDraw
    """
    rng = np.random.default_rng([seed, _STREAM, epoch])
    order = rng.permutation(len(fit))
    own = groups[fit][order]
    table = GroupTable.from_groups(groups[fit], num_groups=int(groups.max()) + 1)
    size = table.size[own]
    position = _position_in_group(groups[fit])[order]
    # One of the size - 1 others: the query's own position is skipped.
    choice = (rng.random(len(fit)) * np.maximum(size - 1, 1)).astype(np.int64)
    choice += (choice >= position) & (size > 1)
    pairs = np.stack([fit[order], fit[table.members[own, choice]]], axis=1)
    steps = []
    for start in range(0, len(pairs), batch_size):
        part = pairs[start : start + batch_size]
        rows = np.unique(part).tolist()
        views = augmentation.draw(rng, len(rows))
        steps.append(StepDraw(part, dict(zip(rows, views, strict=True))))
    return steps


def num_steps(num_fit: int, batch_size: int) -> int:
    """Steps of an epoch."""
    return -(-num_fit // batch_size)


def _position_in_group(groups: IntArray) -> IntArray:
    """Position of each clip among the clips of its group, in order, shape=(n,)."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    position = np.empty(len(groups), dtype=np.int64)
    position[order] = np.arange(len(groups)) - np.searchsorted(ordered, ordered, side="left")
    return position


def rows_of(pairs: npt.ArrayLike) -> list[int]:
    """The clips of some pairs, each once, ascending."""
    rows: list[int] = np.unique(np.asarray(pairs)).tolist()
    return rows


def share(pairs: IntArray, *, rank: int, world: int) -> IntArray:
    """The pairs of a step that are one process's, shape=(p, 2); p may be 0."""
    return np.array_split(pairs, world)[rank]


def chunks(pairs: IntArray, micro_batch_pairs: int) -> list[IntArray]:
    """Pairs cut into what goes through the network together; none give one empty chunk."""
    return [
        pairs[start : start + micro_batch_pairs]
        for start in range(0, len(pairs), micro_batch_pairs)
    ] or [pairs]


def in_several(parts: Sequence[IntArray]) -> list[int]:
    """Rows that are in more than one part, ascending."""
    every = [row for part in parts for row in rows_of(part)]
    found, count = np.unique(np.array(every, dtype=np.int64), return_counts=True)
    several: list[int] = found[count > 1].tolist()
    return several
