"""Check of the window of every clip by decoding it, in parallel.

Conventions
-----------
fault
    (code, clip id, sentence), none or one per clip; the codes are those of
    :data:`aqa_pipeline.datasets.check.KINDS`.

The same decoding as in `aqa extract`, so that what passes here does not fail there.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aqa_pipeline.config import PIXEL_PRESETS, ExtractConfig, Protocol
from aqa_pipeline.datasets.locate import clip_positions
from aqa_pipeline.datasets.manifest import Clip
from aqa_pipeline.errors import ClipError, DataError
from aqa_pipeline.media.clip import ClipFrames, DecodeTask, open_reader, read_clip
from aqa_pipeline.media.decode_pool import Decoded, DecodePool, decode_runs
from aqa_pipeline.media.snippets import clamp_positions

Fault = tuple[str, str, str]

_CODE_OF_STAGE = {
    "open": "unreadable_video",
    "index": "unreadable_video",
    "window": "outside_video",
    "timeout": "timed_out",
    "worker": "timed_out",
}


def check_windows(
    clips: Sequence[Clip],
    protocol: Protocol,
    *,
    jobs: int | None = None,
    index_folder: Path | None = None,
    clip_timeout_seconds: float = ExtractConfig.clip_timeout_seconds,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Fault]:
    """Decode every window once and throw it away.

    Parameters
    ----------
    clips : sequence of Clip
        Their videos exist.
    protocol : Protocol
    jobs : int or None
        Decoding processes; None: one per core this process may use.
    index_folder : Path or None
        Where video indices are remembered; None: a temporary folder.
    clip_timeout_seconds : float
        A clip that takes longer, twice, is a fault.
    progress : callable
        Called as ``progress(done, total)``: clips.

    Yields
    ------
    Fault
        In no particular order.
    """
    progress(0, len(clips))
    if not clips:
        return
    with tempfile.TemporaryDirectory(prefix="aqa-index-") as temporary:
        tasks = [_check_task(clip, protocol, index_folder or Path(temporary)) for clip in clips]
        with DecodePool(
            workers=min(jobs or _num_cores(), len(tasks)),
            clip_timeout_seconds=clip_timeout_seconds,
            decode=_check,
            shares_memory=False,
        ) as pool:
            for done, outcome in enumerate(pool.decode(decode_runs(tasks)), start=1):
                yield from _faults(outcome)
                progress(done, len(clips))


@dataclass(frozen=True, eq=False)
class CheckTask(DecodeTask):
    """A clip whose window is found where it is decoded: that may take the video's length."""

    clip: Clip = dataclasses.field(kw_only=True)
    protocol: Protocol = dataclasses.field(kw_only=True)

    @property
    def first(self) -> int:
        return self.clip.end_frame or self.clip.start_frame or 0


def _check_task(clip: Clip, protocol: Protocol, index_folder: Path) -> CheckTask:
    return CheckTask(
        clip_id=clip.clip_id,
        video=clip.video,
        positions=np.empty(0, np.int64),
        pixels=PIXEL_PRESETS[protocol.pixels],
        index_folder=index_folder,
        strict_window=False,
        clip=clip,
        protocol=protocol,
    )


def _check(task: DecodeTask) -> ClipFrames:
    """Decode a window; frames that nobody looks at need not travel between processes."""
    assert isinstance(task, CheckTask)
    reader = open_reader(task.video, task.pixels, index_folder=task.index_folder)
    length = reader.index.num_frames
    try:
        positions = clip_positions(task.protocol, task.clip, video_frames=length)
    except DataError as error:
        raise ClipError(f"{error}; {task.video} has {length} frames", stage="window") from None
    if clamp_positions(positions, video_frames=length)[1] == len(positions):
        frames = f"frames {positions[0]} to {positions[-1]}"
        raise ClipError(f"{frames} of {length} in {task.video}", stage="window")
    clip = read_clip(dataclasses.replace(task, positions=positions))
    return dataclasses.replace(clip, frames=clip.frames[:0])


def _faults(outcome: Decoded) -> Iterator[Fault]:
    task, clip = outcome.task, outcome.clip
    if outcome.error is not None:
        code = _CODE_OF_STAGE.get(outcome.error.stage, "damaged_window")
        yield code, task.clip_id, str(outcome.error)
    elif clip is not None and clip.num_clamped:
        assert isinstance(task, CheckTask)
        length = clip.video_frames
        positions = clip_positions(task.protocol, task.clip, video_frames=length)
        told = f"frames {positions[0]} to {positions[-1]} of {length} in {task.video}"
        yield (
            "clamped_window",
            task.clip_id,
            f"{told}: {clip.num_clamped} of {len(positions)} are repeats",
        )


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
