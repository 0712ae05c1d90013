"""Which clips of a manifest are in the cache already, and which are still to do.

Nothing is decoded here: a clip is identified by its id, its video's identity (size and
content hash, remembered between runs) and the positions of its window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aqa_pipeline.config import PIXEL_PRESETS, Protocol
from aqa_pipeline.errors import CacheError, ClipError, DataError
from aqa_pipeline.feature_cache import FeatureCache, WantedClips
from aqa_pipeline.fingerprint import Fingerprint
from aqa_pipeline.manifest import Clip, Manifest
from aqa_pipeline.media.identity import known_length, source_identity
from aqa_pipeline.media.snippets import window_positions

IntArray = npt.NDArray[np.int64]

BACKBONE = "i3d"
BACKBONE_DIM = 1024  #: as in :mod:`aqa_pipeline.backbone.i3d`, which would import torch


def video_index_folder(cache_root: Path) -> Path:
    """Where facts about video files (frame times, content hashes) are remembered."""
    return cache_root / "video-index"


def fingerprint_of(
    protocol: Protocol, *, weights_sha256: str, precision: str = "float32"
) -> Fingerprint:
    """The fingerprint of the features a protocol and a backbone give."""
    return Fingerprint(
        backbone=BACKBONE,
        weights_sha256=weights_sha256,
        pixels=PIXEL_PRESETS[protocol.pixels],
        window_rule=protocol.window_rule,
        window_frames=protocol.window_frames,
        snippet_frames=protocol.snippet_frames,
        snippet_starts=protocol.snippet_starts,
        precision=precision,
    )


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
    from aqa_pipeline.media.reader import read_index

    return read_index(video, index_folder=index_folder).num_frames


def wanted(located: Sequence[LocatedClip]) -> WantedClips:
    """The clips as the cache is asked for them."""
    window = len(located[0].positions) if located else 0
    return WantedClips(
        clip_ids=[item.clip.clip_id for item in located],
        source_ids=[item.source_id for item in located],
        frame_index=np.array([item.positions for item in located], dtype=np.int64).reshape(
            len(located), window
        ),
    )


def find_cache(dataset_folder: Path, protocol: Protocol) -> FeatureCache:
    """The one cache of a data set that was made with this protocol.

    Raises
    ------
    CacheError
        There is none, or several (made with different weights); the message says what
        each of them is.
    """
    folders = sorted(path.parent for path in dataset_folder.glob("*/fingerprint.json"))
    opened = [FeatureCache.open(folder) for folder in folders]
    differing: dict[Path, list[str]] = {}
    for cache in opened:
        own = cache.identity.fingerprint
        if cache.is_imported:
            differing[cache.folder] = []  # whoever imported it knows how it was made
            continue
        expected = fingerprint_of(protocol, weights_sha256=own.weights_sha256)
        differing[cache.folder] = [
            line
            for line in expected.differences(own)
            if not line.startswith(("backbone", "precision", "arithmetic"))
        ]
    fitting = [cache for cache in opened if not differing[cache.folder]]
    if len(fitting) == 1:
        return fitting[0]
    extract = f"type `aqa extract --dataset {dataset_folder.name}`"
    if fitting:
        choices = " or ".join(
            f"--cache {cache.folder} (weights {cache.identity.fingerprint.weights_sha256[:12]})"
            for cache in fitting
        )
        raise CacheError(
            f"{dataset_folder}: {len(fitting)} caches fit the protocol; choose one: {choices}"
        )
    if not opened:
        raise CacheError(f"{dataset_folder}: no features yet; {extract}")
    reasons = "; ".join(f"{folder.name}: {', '.join(d)}" for folder, d in differing.items())
    raise CacheError(
        f"{dataset_folder}: no cache was made with the protocol beside the manifest "
        f"(here = protocol, there = cache: {reasons}); {extract}"
    )
