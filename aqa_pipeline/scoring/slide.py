"""Scores of every window of a long video, decoded once, in bounded memory.

Windows overlap, and so do their snippets. Each snippet goes through the backbone once, whichever
windows it belongs to: with the published starts (0, 10, ..., 80, 86) and a stride of 10 that is
two snippets a window instead of ten. Frames are forgotten as soon as no later snippet needs them,
and a window's features as soon as it is scored.

The network's batch is one clip's number of snippets, as everywhere; a score equals the one that
:meth:`aqa_pipeline.scoring.scorer.Scorer.score` gives for the same frames up to the rounding of the
features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from aqa_pipeline.backbone.encoder import Encode
from aqa_pipeline.config import Protocol
from aqa_pipeline.errors import UsageError
from aqa_pipeline.media.clip import ClipRequest, FrameChunk, StreamHead
from aqa_pipeline.scoring.assessor import ClipMetadata, FeatureScorer

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SlidingScores:
    """Every window of a video with its score.

    Attributes
    ----------
    video : str
    video_frames : int
    window_frames : int
    starts : ndarray of int64, shape=(W,)
        First frame of each window.
    seconds : ndarray of float64, shape=(W,)
        When a window's last frame is shown; NaN for a folder of pictures.
    scores : ndarray of float64, shape=(W,)
        In points.
    half_width : float
        Of every window's interval, in points; infinite where there is none.
    coverage : float
    distances : ndarray of float64, shape=(W,)
        To the nearest training clip, see :mod:`aqa_pipeline.scoring.similarity`.
    usual_distance : float
        A window further than this looks unlike the training clips.
    """

    video: str
    video_frames: int
    window_frames: int
    starts: IntArray
    seconds: FloatArray
    scores: FloatArray
    half_width: float
    coverage: float
    distances: FloatArray
    usual_distance: float

    @property
    def is_familiar(self) -> npt.NDArray[np.bool_]:
        """Windows that look like the training clips, shape=(W,)."""
        familiar: npt.NDArray[np.bool_] = self.distances <= self.usual_distance
        return familiar

    def table(self) -> pd.DataFrame:
        """One row per window, for a CSV."""
        has_interval = np.isfinite(self.half_width)
        half = self.half_width if has_interval else np.nan
        return pd.DataFrame(
            {
                "start_frame": self.starts,
                "end_frame": self.starts + self.window_frames,
                "seconds": self.seconds,
                "prediction": self.scores,
                "low": self.scores - half,
                "high": self.scores + half,
                "distance": self.distances,
                "looks_like_training": self.is_familiar,
            }
        )

    def most_familiar(self, count: int) -> list[int]:
        """Windows nearest to the training clips, none overlapping another; best first."""
        return self._apart(np.argsort(self.distances, kind="stable"), count)

    def highest(self, count: int) -> list[int]:
        """Windows with the highest scores among those that look like the training clips."""
        order = np.argsort(-self.scores, kind="stable")
        return self._apart(order[self.is_familiar[order]], count)

    def _apart(self, order: npt.NDArray[np.intp], count: int) -> list[int]:
        chosen: list[int] = []
        for window in order.tolist():
            gaps = np.abs(self.starts[chosen] - self.starts[window])
            if (gaps >= self.window_frames).all():
                chosen.append(window)
            if len(chosen) == count:
                break
        return chosen


def window_starts(
    rule: str, *, window_frames: int, start_frame: int, end_frame: int, stride: int
) -> IntArray:
    """First frames of all whole windows of ``[start_frame, end_frame)``, ``stride`` apart.

    Raises
    ------
    UsageError
        If the protocol spreads a clip's frames evenly over a recording: then a window has no
        length of its own.
    """
    if rule == "even":
        raise UsageError(
            "the run's protocol spreads its frames evenly over a whole recording, so that there "
            "is no window to slide; score it as one clip, between a start and an end frame"
        )
    return np.arange(start_frame, end_frame - window_frames + 1, stride, dtype=np.int64)


def slide(
    chunks: Iterator[FrameChunk | StreamHead],
    assessor: FeatureScorer,
    encode: Encode,
    *,
    request: ClipRequest,
    metadata: ClipMetadata,
    stride: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SlidingScores:
    """Score every window of a stream of frames.

    Parameters
    ----------
    chunks : iterator
        What :func:`aqa_pipeline.media.clip.stream_clip` gives.
    assessor : FeatureScorer
    encode : callable
        The backbone for snippets that do not overlap: frames, uint8 (S x snippet, crop, crop, 3),
        to features, float32 (S, dim); see :func:`snippet_protocol`.
    request : ClipRequest
        What the chunks were made for.
    metadata : ClipMetadata
    stride : int
        Frames from one window to the next.
    progress : callable
        Called as ``progress(done, total)``, in windows.

    Raises
    ------
    UsageError
        If there is no whole window.
    """
    protocol = request.protocol
    head = next(chunks)
    assert isinstance(head, StreamHead)
    starts = window_starts(
        protocol.window_rule,
        window_frames=protocol.window_frames,
        start_frame=head.start_frame,
        end_frame=head.end_frame,
        stride=stride,
    )
    if not len(starts):
        raise UsageError(
            f"{request.video}: {head.end_frame - head.start_frame} frames are shorter than one "
            f"window of {protocol.window_frames}; score it as one clip instead"
        )
    wanted = np.unique(starts[:, None] + np.array(protocol.snippet_starts)[None])
    cutter = _Cutter(wanted, protocol.snippet_frames, len(protocol.snippet_starts), encode)
    seconds: dict[int, float] = {}
    scored: list[tuple[float, float]] = []
    half_width = np.inf
    progress(0, len(starts))
    for chunk in chunks:
        assert isinstance(chunk, FrameChunk)
        last = {int(start) + protocol.window_frames - 1 for start in starts[len(scored) :]}
        for offset, shown in enumerate(chunk.pts_seconds.tolist()):
            if chunk.first + offset in last:
                seconds[chunk.first + offset] = shown
        cutter.feed(chunk)
        if chunk.first + len(chunk.frames) >= head.end_frame:
            cutter.finish()
        while len(scored) < len(starts):
            start = int(starts[len(scored)])
            own = [start + offset for offset in protocol.snippet_starts]
            if not all(start in cutter.features for start in own):
                break
            one = assessor.score(np.stack([cutter.features[start] for start in own]), metadata)
            scored.append((one.score, one.distance))
            if one.interval is not None:
                half_width = one.interval[1] - one.score
            cutter.forget(before=start + stride)
        progress(len(scored), len(starts))
    scores, distances = np.array(scored, dtype=np.float64).T
    return SlidingScores(
        video=str(request.video),
        video_frames=head.video_frames,
        window_frames=protocol.window_frames,
        starts=starts,
        seconds=np.array([seconds[int(start) + protocol.window_frames - 1] for start in starts]),
        scores=scores,
        half_width=float(half_width),
        coverage=assessor.coverage,
        distances=distances,
        usual_distance=one.usual_distance,
    )


def snippet_protocol(protocol: Protocol) -> Protocol:
    """The protocol under which a backbone takes snippets that do not overlap, as many as a clip
    has, so that its batch has the shape it has for a clip.
    """
    count, length = len(protocol.snippet_starts), protocol.snippet_frames
    return dataclasses.replace(
        protocol,
        window_frames=count * length,
        snippet_starts=tuple(range(0, count * length, length)),
    )


class _Cutter:
    """Snippets out of a stream of frames, through the backbone in full batches."""

    def __init__(self, wanted: IntArray, length: int, batch: int, encode: Encode) -> None:
        self.features: dict[int, npt.NDArray[np.float32]] = {}
        self._waiting = wanted.tolist()[::-1]  # next one last
        self._length, self._batch, self._encode = length, batch, encode
        self._frames: npt.NDArray[np.uint8] | None = None
        self._first = 0  # position of the first frame kept
        self._ready: list[tuple[int, npt.NDArray[np.uint8]]] = []

    def feed(self, chunk: FrameChunk) -> None:
        if self._frames is None:
            self._frames, self._first = chunk.frames, chunk.first
        else:
            self._frames = np.concatenate([self._frames, chunk.frames])
        while self._waiting:
            offset = self._waiting[-1] - self._first
            if offset + self._length > len(self._frames):
                break
            self._ready.append(
                (self._waiting.pop(), self._frames[offset : offset + self._length].copy())
            )
            if len(self._ready) == self._batch:
                self._run()
        keep = len(self._frames)
        if self._waiting:
            keep = min(keep, self._waiting[-1] - self._first)
        self._frames, self._first = self._frames[keep:], self._first + keep

    def finish(self) -> None:
        """Encode what is left, in a batch filled up with repeats: its shape is always the same."""
        if self._ready:
            self._run()

    def _run(self) -> None:
        pictures = [frames for _, frames in self._ready]
        pictures += [pictures[-1]] * (self._batch - len(pictures))
        features = self._encode(np.concatenate(pictures))
        for (start, _), own in zip(self._ready, features, strict=False):
            self.features[start] = own
        self._ready.clear()

    def forget(self, *, before: int) -> None:
        for start in [start for start in self.features if start < before]:
            del self.features[start]
