"""A segment of the feature cache: its parts, and the wanted clips it holds.

No file is touched here; :mod:`aqa_pipeline.cache.segment_file` does that.

Conventions
-----------
features : float32, shape=(clips, views, snippets, dim)
    View 0 of a full clip is ``"plain"``.
frame_index : int64, shape=(clips, window_frames)
    Positions that make the window *as the manifest asks for them*, before clamping to
    the video, so that a manifest can be compared without opening a video.
pts_seconds : float64, shape=(clips, window_frames)
    Presentation times of the frames really used; NaN where a source has no times.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aqa_pipeline.atomic import writer_name
from aqa_pipeline.cache.fingerprint import MachineInfo
from aqa_pipeline.errors import CacheError, DataError

PLAIN_VIEW = "plain"

FloatArray = npt.NDArray[np.float64]
FeatureArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
DigestArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]


class SegmentGoneError(CacheError):
    """A listed segment no longer exists: merged or moved away. List again."""


class SegmentDamagedError(CacheError):
    """A segment that must not be read as data."""


@dataclass(frozen=True)
class SegmentTable:
    """Everything of a segment but the features.

    Attributes
    ----------
    view_names : tuple of str
    clip_ids, source_ids : list of bytes
        UTF-8, one a clip.
    frame_index : ndarray of int64, shape=(clips, window_frames)
    pts_seconds : ndarray of float64, shape=(clips, window_frames)
    digests : ndarray of uint8, shape=(clips, 32)
        :func:`clip_digest` of each clip.
    """

    view_names: tuple[str, ...]
    clip_ids: list[bytes]
    source_ids: list[bytes]
    frame_index: IntArray
    pts_seconds: FloatArray
    digests: DigestArray


@dataclass(frozen=True, eq=False)
class SegmentIndex:
    """What a segment holds, as read from a file that validated; the file is closed.

    Attributes
    ----------
    path : Path
    view_names : tuple of str
    clip_ids, source_ids : list of bytes
        UTF-8, one a clip.
    frame_index : ndarray of int64, shape=(clips, window_frames)
    feature_shape : tuple of int
        (clips, views, snippets, dim).
    created_utc : str
    machines : list of dict
        Facts of the machines that computed it; several after a merge.
    file_bytes : int
    """

    path: Path
    view_names: tuple[str, ...]
    clip_ids: list[bytes]
    source_ids: list[bytes]
    frame_index: IntArray
    feature_shape: tuple[int, int, int, int]
    created_utc: str
    machines: list[MachineInfo]
    file_bytes: int

    @property
    def num_clips(self) -> int:
        return self.feature_shape[0]


def merged_machines(segments: Sequence[SegmentIndex]) -> list[MachineInfo]:
    """Facts of all machines that computed these segments, each once."""
    machines: list[MachineInfo] = []
    for segment in segments:
        machines += [facts for facts in segment.machines if facts not in machines]
    return machines


def segment_name(now: datetime) -> str:
    """File name of a new segment; names sort by time, and no two writers make the same."""
    return f"segment-{now.astimezone(UTC):%Y%m%dT%H%M%S.%f}Z-{writer_name()}.h5"


def clip_digest(
    *,
    clip_id: bytes,
    source_id: bytes,
    view_names: Sequence[str],
    frame_index: IntArray,
    pts_seconds: FloatArray,
    features: FeatureArray,
) -> bytes:
    """SHA-256 over one clip, exactly as docs/cache-format.md spells it.

    Every part is preceded by its length in bytes (uint64, little-endian), so that no
    two different clips give the same bytes.

    Parameters
    ----------
    frame_index, pts_seconds : ndarray, shape=(window_frames,)
    features : ndarray of float32, shape=(views, snippets, dim)

    Returns
    -------
    bytes
        32 of them.
    """
    digest = hashlib.sha256(b"aqa-clip-1\n")
    parts: list[bytes] = [clip_id, source_id]
    parts.append(json.dumps(list(view_names)).encode("ascii"))
    parts.append(np.ascontiguousarray(frame_index, dtype="<i8").tobytes())
    parts.append(np.ascontiguousarray(pts_seconds, dtype="<f8").tobytes())
    parts.append(np.asarray(features.shape, dtype="<u8").tobytes())
    for part in parts:
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)
    block = np.ascontiguousarray(features, dtype="<f4")
    digest.update(struct.pack("<Q", block.nbytes))
    digest.update(block.data)
    return digest.digest()


def encoded(text: str, *, what: str) -> bytes:
    """UTF-8 bytes of an id, as they are stored.

    Raises
    ------
    DataError
        It holds a NUL or a lone surrogate, which HDF5 text cannot keep.
    """
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{what} {text!r} is not valid text ({error.reason})") from error
    if b"\0" in data:
        raise DataError(f"{what} {text!r} holds a NUL character; rename it")
    return data


def mismatches(table: SegmentTable, start: int, block: FeatureArray) -> list[int]:
    """Offsets into a block of features whose clips do not have their stored hash."""
    return [
        offset
        for offset, features in enumerate(block)
        if clip_digest(
            clip_id=table.clip_ids[start + offset],
            source_id=table.source_ids[start + offset],
            view_names=table.view_names,
            frame_index=table.frame_index[start + offset],
            pts_seconds=table.pts_seconds[start + offset],
            features=features,
        )
        != table.digests[start + offset].tobytes()
    ]


@dataclass(frozen=True)
class ClipQuery:
    """Clips as a manifest asks for them.

    Attributes
    ----------
    clip_ids, source_ids : sequence of str, length n
        Clip ids are unique.
    frame_index : ndarray of int64, shape=(n, window_frames)
        Positions of each window, before clamping.
    """

    clip_ids: Sequence[str]
    source_ids: Sequence[str]
    frame_index: IntArray

    def __post_init__(self) -> None:
        count = len(self.clip_ids)
        if len(self.source_ids) != count or self.frame_index.shape[:1] != (count,):
            raise DataError(
                f"{count} clip ids, {len(self.source_ids)} source ids and positions of shape "
                f"{self.frame_index.shape} do not belong together"
            )
        if len(self._rows) != count:
            twice = Counter(self.clip_ids).most_common(1)[0][0]
            raise DataError(f"clip id {twice!r} is asked for twice")

    def __len__(self) -> int:
        return len(self.clip_ids)

    @cached_property
    def _rows(self) -> dict[bytes, int]:
        return {encoded(name, what="clip id"): row for row, name in enumerate(self.clip_ids)}

    @cached_property
    def _sources(self) -> npt.NDArray[np.object_]:
        sources = np.empty(len(self), dtype=object)
        sources[:] = [encoded(name, what="source id") for name in self.source_ids]
        return sources

    def take(self, rows: IntArray) -> ClipQuery:
        """Some of the clips, in the order of `rows`."""
        index = rows.tolist()
        return ClipQuery(
            clip_ids=[self.clip_ids[row] for row in index],
            source_ids=[self.source_ids[row] for row in index],
            frame_index=self.frame_index[rows],
        )

    def match(self, segment: SegmentIndex) -> tuple[IntArray, BoolArray]:
        """Find a segment's clips among the wanted ones.

        Returns
        -------
        rows : ndarray of int64, shape=(clips of the segment,)
            Row here with the same clip id, -1 for none.
        exact : ndarray of bool, shape=(clips of the segment,)
            Whether source identity and positions are equal too.
        """
        rows = np.array([self._rows.get(name, -1) for name in segment.clip_ids], dtype=np.int64)
        known = rows >= 0
        exact = known.copy()
        if segment.frame_index.shape[1:] != self.frame_index.shape[1:]:
            return rows, np.zeros_like(known)
        sources = np.empty(len(rows), dtype=object)
        sources[:] = segment.source_ids
        exact[known] = (self._sources[rows[known]] == sources[known]) & (
            self.frame_index[rows[known]] == segment.frame_index[known]
        ).all(axis=1)
        return rows, exact
