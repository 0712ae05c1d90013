"""Check of the window of every clip by decoding it, in parallel.

Conventions
-----------
fault
    (code, clip id, sentence), none or one a clip; the codes are those of
    :data:`aqa_pipeline.datasets.check.KINDS`.

The same decoding as in `aqa extract`, so that what passes here does not fail there.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aqa_pipeline.config import PIXEL_PRESETS, ExtractConfig, Protocol
from aqa_pipeline.datasets.locate import clip_positions
from aqa_pipeline.datasets.manifest import Clip
from aqa_pipeline.errors import ClipError, DataError
from aqa_pipeline.media.decode_pool import (
    DecodedClip,
    DecodePool,
    DecodeTask,
    decode_clip,
    decode_runs,
)
from aqa_pipeline.media.reader import read_index
from aqa_pipeline.media.snippets import clamp_positions

Fault = tuple[str, str, str]

_CODE_OF_STAGE = {
    "open": "unreadable_video",
    "index": "unreadable_video",
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
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Fault]:
    """Decode every window once and throw it away.

    Parameters
    ----------
    clips : sequence of Clip
        Their videos exist.
    protocol : Protocol
    jobs : int or None
        Decoding processes; None: one a core this process may use.
    index_folder : Path or None
        Where video indices are remembered; None: a temporary folder.
    clip_timeout_seconds : float
        A clip that takes longer, twice, is a fault.
    progress : callable, optional
        Told ``(clips done, clips)``.

    Yields
    ------
    Fault
        In no particular order.
    """
    jobs = jobs or _num_cores()
    with tempfile.TemporaryDirectory(prefix="aqa-index-") as temporary:
        folder = index_folder or Path(temporary)
        lengths = _video_lengths(sorted({clip.video for clip in clips}), folder, jobs)
        tasks, clamped = [], {}
        for clip in clips:
            length = lengths[clip.video]
            if isinstance(length, ClipError):
                yield "unreadable_video", clip.clip_id, str(length)
                continue
            try:
                positions = clip_positions(protocol, clip, video_frames=length)
            except DataError as error:
                text = f"{error}; {clip.video} has {length} frames"
                yield "outside_video", clip.clip_id, text
                continue
            _, num_clamped = clamp_positions(positions, video_frames=length)
            told = f"frames {positions[0]} to {positions[-1]} of {length} in {clip.video}"
            if num_clamped == len(positions):
                yield "outside_video", clip.clip_id, told
                continue
            if num_clamped:
                clamped[clip.clip_id] = f"{told}: {num_clamped} of {len(positions)} are repeats"
            task = DecodeTask(
                clip_id=clip.clip_id,
                video=clip.video,
                positions=positions,
                pixels=PIXEL_PRESETS[protocol.pixels],
                index_folder=folder,
                strict_window=False,
            )
            tasks.append(task)
        failed = yield from _decode(
            tasks,
            jobs=jobs,
            clip_timeout_seconds=clip_timeout_seconds,
            progress=progress,
            num_clips=len(clips),
        )
        for clip_id in clamped.keys() - failed:
            yield "clamped_window", clip_id, clamped[clip_id]


def _decode(
    tasks: Sequence[DecodeTask],
    *,
    jobs: int,
    clip_timeout_seconds: float,
    progress: Callable[[int, int], None] | None,
    num_clips: int,
) -> Generator[Fault, None, set[str]]:
    """Faults of the decoding; returns the clips that have one."""
    done = num_clips - len(tasks)
    failed: set[str] = set()
    if progress is not None:
        progress(done, num_clips)
    if not tasks:
        return failed
    with DecodePool(
        workers=min(jobs, len(tasks)),
        clip_timeout_seconds=clip_timeout_seconds,
        decode=_decode_and_drop,
        shares_memory=False,
    ) as pool:
        for outcome in pool.decode(decode_runs(tasks)):
            if outcome.error is not None:
                code = _CODE_OF_STAGE.get(outcome.error.stage, "damaged_window")
                failed.add(outcome.task.clip_id)
                yield code, outcome.task.clip_id, str(outcome.error)
            done += 1
            if progress is not None:
                progress(done, num_clips)
    return failed


def _decode_and_drop(task: DecodeTask) -> DecodedClip:
    # Frames that nobody looks at need not travel between processes.
    clip = decode_clip(task)
    return dataclasses.replace(clip, frames=clip.frames[:0])


def _video_lengths(
    videos: Sequence[Path], index_folder: Path, jobs: int
) -> dict[Path, int | ClipError]:
    """Frames of each video, or why they cannot be counted; remembers the indices."""

    def length(video: Path) -> int | ClipError:
        try:
            return read_index(video, index_folder=index_folder).num_frames
        except ClipError as error:
            return error

    # Threads are enough: reading packets does not hold the interpreter's lock.
    with ThreadPoolExecutor(max_workers=jobs) as threads:
        return dict(zip(videos, threads.map(length, videos), strict=True))


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
