"""Collecting clips and writing them as segments of a feature cache.

Any number of writers may work on one folder, on any number of machines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import numpy as np

from aqa_pipeline.cache.fingerprint import Fingerprint, MachineInfo, ensure_cache, machine_facts
from aqa_pipeline.cache.segment import (
    PLAIN_VIEW,
    FeatureArray,
    FloatArray,
    IntArray,
    SegmentTable,
    clip_digest,
    encoded,
    segment_name,
)
from aqa_pipeline.cache.segment_file import write_segment
from aqa_pipeline.config import ExtractConfig
from aqa_pipeline.errors import ClipError, DataError


@dataclass(frozen=True)
class ClipFeatures:
    """One extracted clip.

    Attributes
    ----------
    clip_id : str
    source_id : str
        Identity of the video: changes when its bytes do.
    frame_index : ndarray of int64, shape=(window_frames,)
        Positions of the window as the manifest asks for them, before clamping.
    pts_seconds : ndarray of float64, shape=(window_frames,)
        Presentation times of the frames used, in seconds; NaN where there are none.
    features : ndarray of float32, shape=(views, snippets, dim)
    view_names : tuple of str
        What each view is; a full clip begins with ``"plain"``.
    """

    clip_id: str
    source_id: str
    frame_index: IntArray
    pts_seconds: FloatArray
    features: FeatureArray
    view_names: tuple[str, ...] = (PLAIN_VIEW,)


@dataclass(frozen=True)
class _Pending:
    clip_id: bytes
    source_id: bytes
    frame_index: IntArray
    pts_seconds: FloatArray
    features: FeatureArray
    digest: bytes


class SegmentWriter:
    """Buffer clips; write a segment after so many of them or so many seconds.

    Leaving the ``with`` block writes what is left, also when an error or Ctrl-C ended
    it. Nothing is dropped from the buffer before its segment is on the disk, so that a
    flush that failed may be tried again.

    Parameters
    ----------
    folder : Path
        The cache folder; made if it is missing.
    fingerprint : Fingerprint
    config : ExtractConfig
        ``flush_clips`` and ``flush_seconds`` are used.
    machine : dict, optional
        Facts of this machine to record; default: those of
        :func:`aqa_pipeline.cache.fingerprint.machine_facts`.
    monotonic : callable
        Seconds, for ``flush_seconds``.
    utc_now : callable
        Time of day, for names and ``created_utc``.

    Raises
    ------
    CacheError
        The folder belongs to another fingerprint.
    SetupError
        The folder cannot be made or written.

    Examples
    --------
    >>> with SegmentWriter(folder, fingerprint) as writer:  # doctest: +SKIP
    ...     for clip in clips:
    ...         writer.add(clip)
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Fingerprint,
        *,
        config: ExtractConfig | None = None,
        machine: MachineInfo | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        utc_now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.folder = folder
        self.written: list[Path] = []
        self._fingerprint = fingerprint
        self._config = config or ExtractConfig()
        self._machine = machine_facts() if machine is None else machine
        self._monotonic = monotonic
        self._utc_now = utc_now
        self._pending: dict[tuple[str, ...], list[_Pending]] = {}
        self._first_added_seconds = 0.0
        self._dim: int | None = None
        ensure_cache(folder, fingerprint, machine=self._machine)

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.flush()

    @property
    def num_pending(self) -> int:
        """Clips that are not on the disk yet."""
        return sum(map(len, self._pending.values()))

    def add(self, clip: ClipFeatures) -> list[Path]:
        """Take a clip; its arrays are copied.

        Returns
        -------
        list of Path
            Segments written now, usually none.

        Raises
        ------
        ClipError
            A feature is not a finite number.
        DataError
            The arrays do not have the shapes that the fingerprint promises.
        SetupError
            The disk is full or the folder is read-only.
        """
        pending = self._checked(clip)
        if not self._pending:
            self._first_added_seconds = self._monotonic()
        self._pending.setdefault(tuple(clip.view_names), []).append(pending)
        return self.flush_if_due()

    def flush_if_due(self) -> list[Path]:
        """Flush if there are enough clips or the oldest has waited long enough.

        To be called now and then while waiting for the next clip.
        """
        due = self.num_pending >= self._config.flush_clips or (
            self.num_pending > 0
            and self._monotonic() - self._first_added_seconds >= self._config.flush_seconds
        )
        return self.flush() if due else []

    def flush(self) -> list[Path]:
        """Write all pending clips, one segment for each set of views.

        Returns
        -------
        list of Path
            The segments written now.

        Raises
        ------
        SetupError
            The disk is full or the folder is read-only; the clips stay pending.
        """
        paths = []
        for view_names in list(self._pending):
            paths.append(self._write(view_names, self._pending[view_names]))
            del self._pending[view_names]
            self.written.append(paths[-1])
        return paths

    def _write(self, view_names: tuple[str, ...], clips: Sequence[_Pending]) -> Path:
        now = self._utc_now()
        path = self.folder / segment_name(now)
        table = SegmentTable(
            view_names=view_names,
            clip_ids=[clip.clip_id for clip in clips],
            source_ids=[clip.source_id for clip in clips],
            frame_index=np.stack([clip.frame_index for clip in clips]),
            pts_seconds=np.stack([clip.pts_seconds for clip in clips]),
            digests=np.frombuffer(b"".join(clip.digest for clip in clips), np.uint8).reshape(
                -1, 32
            ),
        )
        _, snippets, dim = clips[0].features.shape
        write_segment(
            path,
            fingerprint_sha256=self._fingerprint.sha256,
            table=table,
            feature_blocks=(clip.features[None] for clip in clips),
            feature_shape=(len(clips), len(view_names), snippets, dim),
            machines=[self._machine],
            now=now,
        )
        return path

    def _checked(self, clip: ClipFeatures) -> _Pending:
        name = f"clip {clip.clip_id!r}"
        features = np.array(clip.features, dtype=np.float32, order="C")
        snippets = len(self._fingerprint.snippet_starts)
        if features.ndim != 3 or features.shape[:2] != (len(clip.view_names), snippets):
            raise DataError(
                f"{name}: features of shape {features.shape}, expected "
                f"({len(clip.view_names)} views, {snippets} snippets, dim)"
            )
        self._dim = self._dim or features.shape[2]
        if features.shape[2] != self._dim or not self._dim:
            raise DataError(
                f"{name}: features of {features.shape[2]} numbers, expected {self._dim}"
            )
        if not clip.view_names or len(set(clip.view_names)) != len(clip.view_names):
            raise DataError(f"{name}: views {clip.view_names} are not one name each")
        if not np.isfinite(features).all():
            raise ClipError(f"{name}: the network gave a value that is not finite", stage="network")
        window = (self._fingerprint.window_frames,)
        frame_index = np.array(clip.frame_index, dtype=np.int64)
        pts_seconds = np.array(clip.pts_seconds, dtype=np.float64)
        if frame_index.shape != window or pts_seconds.shape != window:
            raise DataError(
                f"{name}: {frame_index.shape} positions and {pts_seconds.shape} times, "
                f"expected {window} of each"
            )
        clip_id = encoded(clip.clip_id, what="clip id")
        source_id = encoded(clip.source_id, what="source id")
        for view in clip.view_names:
            encoded(view, what="view")
        digest = clip_digest(
            clip_id=clip_id,
            source_id=source_id,
            view_names=clip.view_names,
            frame_index=frame_index,
            pts_seconds=pts_seconds,
            features=features,
        )
        return _Pending(clip_id, source_id, frame_index, pts_seconds, features, digest)
