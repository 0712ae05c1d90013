"""Location of clips: the video of each, its identity and the positions of its window."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aqa_pipeline.config import Protocol
from aqa_pipeline.datasets.manifest import Clip, Manifest
from aqa_pipeline.errors import ClipError, DataError
from aqa_pipeline.media.identity import known_length, source_identity
from aqa_pipeline.media.snippets import window_positions

IntArray = npt.NDArray[np.int64]


def video_index_folder(cache_root: Path) -> Path:
    """Where facts about video files (frame times, content hashes) are remembered."""
    return cache_root / "video-index"


@dataclass(frozen=True, eq=False)
class LocatedClip:
    """A clip whose video is there.

    Attributes
    ----------
    clip : Clip
    source_id : str
        See :func:`aqa_pipeline.media.identity.source_identity`.
    positions : ndarray of int64, shape=(window_frames,)
        Before clamping.
    """

    clip: Clip
    source_id: str
    positions: IntArray


@dataclass(frozen=True)
class MissingClip:
    """A clip that cannot even be located: no video, or one that cannot be read."""

    clip: Clip
    error: ClipError


def clip_positions(protocol: Protocol, clip: Clip, *, video_frames: int | None) -> IntArray:
    """Window of a clip before clamping, shape=(window_frames,).

    ``end_frame`` defaults to the number of frames of the video, ``start_frame`` to 0.

    Raises
    ------
    DataError
        If the clip is empty.
    """
    end = clip.end_frame if clip.end_frame is not None else video_frames
    if end is None:
        raise DataError(f"clip {clip.clip_id!r}: neither end_frame nor the video's length is known")
    try:
        return window_positions(
            protocol.window_rule,
            window_frames=protocol.window_frames,
            start_frame=clip.start_frame or 0,
            end_frame=end,
        )
    except DataError as error:
        raise DataError(f"clip {clip.clip_id!r}: {error}") from None


def locate(
    manifest: Manifest, *, index_folder: Path
) -> tuple[list[LocatedClip], list[MissingClip]]:
    """Find each clip's video and window.

    A video is read only the first time: to hash it, and, where a clip has no end_frame,
    to count its frames.
    """
    identities: dict[Path, str | ClipError] = {}
    lengths: dict[Path, int] = {}
    located, missing = [], []
    for clip in manifest.clip_list():
        try:
            if clip.video not in identities:
                try:
                    identities[clip.video] = source_identity(clip.video, index_folder=index_folder)
                except ClipError as error:
                    identities[clip.video] = error
            identity = identities[clip.video]
            if isinstance(identity, ClipError):
                raise identity
            if clip.end_frame is None and clip.video not in lengths:
                lengths[clip.video] = _length(clip.video, index_folder=index_folder)
            positions = clip_positions(
                manifest.protocol, clip, video_frames=lengths.get(clip.video)
            )
        except ClipError as error:
            missing.append(MissingClip(clip, error))
        except DataError as error:
            missing.append(MissingClip(clip, ClipError(str(error), stage="window")))
        else:
            located.append(LocatedClip(clip, identity, positions))
    return located, missing


def _length(video: Path, *, index_folder: Path) -> int:
    known = known_length(video, index_folder=index_folder)
    if known is not None:
        return known
    # Imported here: PyAV is only needed for a video that was never looked into.
    from aqa_pipeline.media.checks import checked_index

    return checked_index(video, index_folder=index_folder)[0].num_frames
