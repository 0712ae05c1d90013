"""Decoded clips through the network, in groups where the network takes several at once.

On a GPU one group is computed while the next is gathered from the decoders; a third is
not begun before the first is done, which bounds the memory in use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from aqa_pipeline.backbone.encoder import Encode
from aqa_pipeline.media.decode_pool import Decoded

_GROUPS_AT_ONCE = 2

Frames = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]
#: A clip with the features of each of its windows; none if it could not be decoded.
Encoded = tuple[Decoded, list[Features]]


@runtime_checkable
class TakesSeveral(Protocol):
    """An :data:`Encode` that works on several clips at once, and while others are gathered."""

    @property
    def clips_at_once(self) -> int: ...

    def start(self, windows: Sequence[Frames]) -> Callable[[], list[Features]]:
        """Begin; the call that is returned waits for the features, one array a window."""
        ...


@dataclass
class _Group:
    """Clips that are computed together; ``counts`` says how many windows each has."""

    clips: list[Decoded] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    windows: list[Frames] = field(default_factory=list)
    wait: Callable[[], list[Features]] = list

    def add(self, clip: Decoded, windows: Sequence[Frames]) -> None:
        self.clips.append(clip)
        self.counts.append(len(windows))
        self.windows += windows

    def start(self, encode: TakesSeveral) -> None:
        self.wait = encode.start(self.windows)
        self.windows = []  # the encoder has them

    def finish(self) -> Iterator[Encoded]:
        features = iter(self.wait())
        for clip, count in zip(self.clips, self.counts, strict=True):
            yield clip, [next(features) for _ in range(count)]


def encode_stream(
    decoded: Iterable[Decoded],
    windows_of: Callable[[Decoded], Sequence[Frames]],
    encode: Encode | TakesSeveral,
) -> Iterator[Encoded]:
    """Every clip with the features of its windows.

    Parameters
    ----------
    decoded : iterable of Decoded
        Clips without frames are passed on at once, before those that are in a group.
    windows_of : callable
        The views of a clip, each (window_frames, crop, crop, 3): every one a clip to the
        network.
    encode : callable
        One clip after the other; or several at once if it is a :class:`TakesSeveral`.
    """
    if not isinstance(encode, TakesSeveral):
        for clip in decoded:
            yield clip, [encode(window) for window in windows_of(clip)] if clip.clip else []
        return
    running: deque[_Group] = deque()
    group = _Group()
    for clip in decoded:
        if clip.clip is None:
            yield clip, []
            continue
        group.add(clip, windows_of(clip))
        if len(group.windows) < encode.clips_at_once:
            continue
        if len(running) == _GROUPS_AT_ONCE:
            yield from running.popleft().finish()
        group.start(encode)
        running.append(group)
        group = _Group()
    if group.clips:
        group.start(encode)
        running.append(group)
    for last in running:
        yield from last.finish()
