"""Small made-up clips for the tests of the feature cache."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from aqa_pipeline.cache.fingerprint import Fingerprint
from aqa_pipeline.cache.reader import ClipQuery
from aqa_pipeline.cache.writer import ClipFeatures, SegmentWriter
from aqa_pipeline.config import PIXEL_PRESETS, ExtractConfig

WINDOW_FRAMES = 7
SNIPPETS = 2
DIM = 5

FINGERPRINT = Fingerprint(
    backbone="i3d",
    weights_sha256="ab" * 32,
    pixels=PIXEL_PRESETS["kinetics"],
    window_rule="last",
    window_frames=WINDOW_FRAMES,
    snippet_frames=4,
    snippet_starts=(0, 3),
)


class Clock:
    """Seconds and times of day that only move when told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def utc_now(self) -> datetime:
        # A microsecond a call, so that file names keep their order.
        self.seconds += 1e-6
        return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC) + timedelta(seconds=self.seconds)


def make_clip(
    clip_id: str,
    *,
    source_id: str = "source-1",
    first_frame: int = 0,
    view_names: tuple[str, ...] = ("plain",),
    value: float | None = None,
) -> ClipFeatures:
    seed = np.frombuffer(repr((clip_id, source_id, first_frame)).encode(), np.uint8)
    shape = (len(view_names), SNIPPETS, DIM)
    features = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    if value is not None:
        features[:] = value
    frame_index = np.arange(first_frame, first_frame + WINDOW_FRAMES)
    return ClipFeatures(clip_id, source_id, frame_index, frame_index / 25.0, features, view_names)


def want(clips: Sequence[ClipFeatures]) -> ClipQuery:
    return ClipQuery(
        [clip.clip_id for clip in clips],
        [clip.source_id for clip in clips],
        np.array([clip.frame_index for clip in clips], dtype=np.int64).reshape(
            len(clips), WINDOW_FRAMES
        ),
    )


def write(
    folder: Path,
    clips: Sequence[ClipFeatures],
    *,
    clock: Clock | None = None,
    flush_clips: int = 99,
) -> list[Path]:
    clock = clock or Clock()
    config = ExtractConfig(flush_clips=flush_clips)
    with SegmentWriter(
        folder,
        FINGERPRINT,
        config=config,
        machine={"cpu": "test"},
        monotonic=clock.monotonic,
        utc_now=clock.utc_now,
    ) as writer:
        for clip in clips:
            writer.add(clip)
    return writer.written


def damage(path: Path, clip_id: str) -> None:
    """Flip one bit in the features of a clip from :func:`make_clip`."""
    data = bytearray(path.read_bytes())
    data[bytes(data).index(make_clip(clip_id).features.tobytes())] ^= 1
    path.write_bytes(data)
