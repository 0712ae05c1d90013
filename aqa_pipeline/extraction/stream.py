"""Clips through the network, in groups where the network takes several at once.

On a GPU one group is computed while the next is gathered from the decoders; a third is
not begun before the first is done, which bounds the memory in use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from aqa_pipeline.backbone.encoder import Encode

_GROUPS_AT_ONCE = 2

Frames = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]
Item = TypeVar("Item")


def encode_stream(
    clips: Iterable[Item],
    windows_of: Callable[[Item], Sequence[Frames]],
    encode: Encode,
) -> Iterator[tuple[Item, list[Features]]]:
    """Every clip with the features of its windows.

    Parameters
    ----------
    clips : iterable
    windows_of : callable
        The views of a clip, each (window_frames, crop, crop, 3): every one a clip to the
        network. Clips with none, which could not be decoded, are passed on at once, before
        those that are in a group.
    encode : callable
        Takes one clip after the other; or several at once if it is a
        :class:`~aqa_pipeline.backbone.gpu_encoder.BatchedEncoder`.
    """
    start = getattr(encode, "start", None)
    if start is None:
        for clip in clips:
            yield clip, [encode(window) for window in windows_of(clip)]
        return
    running: deque[Iterator[tuple[Item, list[Features]]]] = deque()
    group: list[tuple[Item, int]] = []
    windows: list[Frames] = []
    for clip in clips:
        views = windows_of(clip)
        if not views:
            yield clip, []
            continue
        group.append((clip, len(views)))
        windows += views
        if len(windows) < encode.clips_at_once:  # type: ignore[attr-defined]
            continue
        if len(running) == _GROUPS_AT_ONCE:
            yield from running.popleft()
        running.append(_finished(group, start(windows)))
        group, windows = [], []  # the encoder has them
    if group:
        running.append(_finished(group, start(windows)))
    for last in running:
        yield from last


def _finished(
    group: Sequence[tuple[Item, int]], wait: Callable[[], list[Features]]
) -> Iterator[tuple[Item, list[Features]]]:
    """The clips of a group, each with the features of its windows; waits when it is asked."""
    features = iter(wait())
    for clip, count in group:
        yield clip, [next(features) for _ in range(count)]
