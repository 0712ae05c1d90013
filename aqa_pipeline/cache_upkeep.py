"""Looking after a feature cache: verify, quarantine, compact, collect garbage.

None of it needs the writers or readers to stop. A file is only removed after
everything in it is durable in another one, or when nobody can want it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from aqa_pipeline.atomic import fsync_folder, is_temporary, stale_temporaries, storage_error
from aqa_pipeline.errors import CacheError
from aqa_pipeline.failures import read_failures
from aqa_pipeline.feature_cache import Damage, FeatureCache, WantedClips
from aqa_pipeline.fingerprint import CacheIdentity, Facts
from aqa_pipeline.segment import (
    FeatureArray,
    SegmentDamagedError,
    SegmentGoneError,
    SegmentIndex,
    SegmentTable,
    mismatches,
    segment_name,
)
from aqa_pipeline.store import damaged_clips, read_features, read_table, write_segment

logger = logging.getLogger(__name__)

QUARANTINE = "quarantine"
_ATTEMPTS = 10


@dataclass(frozen=True)
class CacheInfo:
    """What a cache folder holds.

    Attributes
    ----------
    folder : Path
    identity : CacheIdentity
    num_segments, num_clips : int
        Clips are counted once, whatever their views.
    clips_of_view : dict of str to int
        Clips of which each view is here.
    num_bytes : int
        Of the segments that validated.
    damaged : list of Damage
    num_failed : int
        Clips that failed and are still not here.
    temporaries : list of Path
        Files being written now, or left by a killed writer.
    machines : list of dict
        Facts of all machines that computed something in here, each once.
    """

    folder: Path
    identity: CacheIdentity
    num_segments: int
    num_clips: int
    clips_of_view: dict[str, int]
    num_bytes: int
    damaged: list[Damage]
    num_failed: int
    temporaries: list[Path]
    machines: list[Facts]


def cache_info(folder: Path) -> CacheInfo:
    """Count what a cache folder holds; no feature is read.

    Raises
    ------
    CacheError
        There is no cache.
    """
    cache = FeatureCache.open(folder)
    clips: dict[str, set[bytes]] = {}
    for segment in cache.segments:
        for name in segment.view_names:
            clips.setdefault(name, set()).update(segment.clip_ids)
    succeeded = cache.clip_ids()
    return CacheInfo(
        folder=folder,
        identity=cache.identity,
        num_segments=len(cache.segments),
        num_clips=len(succeeded),
        clips_of_view={name: len(ids) for name, ids in clips.items()},
        num_bytes=sum(segment.file_bytes for segment in cache.segments),
        damaged=cache.damaged,
        num_failed=len(read_failures(folder, succeeded=succeeded)),
        temporaries=sorted(path for path in folder.glob(".tmp-*") if is_temporary(path)),
        machines=_merged_machines(cache.segments),
    )


@dataclass(frozen=True)
class Verification:
    """Result of :func:`verify`.

    Attributes
    ----------
    num_segments, num_clips : int
        What was read and hashed.
    damaged : list of Damage
        Segments with anything wrong in them.
    """

    num_segments: int
    num_clips: int
    damaged: list[Damage]


def verify(folder: Path) -> Verification:
    """Read every byte of every segment and hash every clip again. Changes nothing.

    Raises
    ------
    CacheError
        There is no cache.
    """
    cache = FeatureCache.open(folder)
    damaged = list(cache.damaged)
    num_clips = num_segments = 0
    for segment in cache.segments:
        try:
            bad = damaged_clips(segment)
        except SegmentGoneError:
            continue  # merged meanwhile; what was merged has been hashed then
        except SegmentDamagedError as error:
            damaged.append(Damage(segment.path, str(error).removeprefix(f"{segment.path}: ")))
            continue
        num_segments += 1
        num_clips += segment.num_clips
        if bad:
            names = ", ".join(repr(segment.clip_ids[row].decode("utf-8")) for row in bad[:3])
            more = ", ..." if len(bad) > 3 else ""
            reason = f"wrong hash in {len(bad)} of {segment.num_clips} clips ({names}{more})"
            damaged.append(Damage(segment.path, reason))
    return Verification(num_segments, num_clips, damaged)


def quarantine(folder: Path, damaged: Sequence[Damage], *, dry_run: bool = False) -> list[Path]:
    """Move damaged segments out of the way, into ``quarantine/``; nothing is deleted.

    Returns
    -------
    list of Path
        Where they are now, or would be.

    Raises
    ------
    SetupError
        The folder cannot be written.
    """
    target = folder / QUARANTINE
    moved = [target / damage.path.name for damage in damaged]
    if dry_run or not moved:
        return moved
    try:
        target.mkdir(exist_ok=True)
        for damage, path in zip(damaged, moved, strict=True):
            with contextlib.suppress(FileNotFoundError):  # another verify was faster
                os.rename(damage.path, path)
        fsync_folder(target)
        fsync_folder(folder)
    except OSError as error:
        raise storage_error(error, target) from error
    return moved


@dataclass(frozen=True)
class Compaction:
    """Result of :func:`compact`.

    Attributes
    ----------
    merged : list of Path
        Segments that were, or would be, merged and removed.
    written : list of Path
        What they became; empty in a dry run.
    num_clips : int
        Clips in the merged files.
    """

    merged: list[Path]
    written: list[Path]
    num_clips: int


def compact(folder: Path, *, dry_run: bool = False) -> Compaction:
    """Merge the segments of a cache into one for each set of views.

    Every clip is hashed on the way: a segment with a wrong hash is left where it is, with
    a warning. Copies of one clip (same source, same positions) become one. The old
    segments are removed after the new one is durable. Whatever stops it, no clip is lost:
    at worst some lie in two files, and the next call merges those.

    Raises
    ------
    CacheError
        There is no cache, or segments kept vanishing.
    SetupError
        No space for the merged file, or the folder cannot be written.
    """
    merged: list[Path] = []
    written: list[Path] = []
    num_clips = 0
    cache = FeatureCache.open(folder)
    for views in sorted({segment.view_names for segment in cache.segments}):
        for _ in range(_ATTEMPTS):
            group = [segment for segment in cache.segments if segment.view_names == views]
            if len(group) < 2:
                break
            try:
                sound = [segment for segment in group if dry_run or _is_sound(segment)]
                rows = _newest_rows(sound)
                count = sum(map(len, rows))
                path = None if dry_run or len(sound) < 2 else _merge(cache, sound, rows, count)
            except SegmentGoneError:
                cache.refresh()
                continue
            if len(sound) >= 2:
                merged += [segment.path for segment in sound]
                num_clips += count
            if path is not None:
                written.append(path)
                _remove([segment.path for segment in sound])
            break
        else:
            raise CacheError(f"{folder}: segments keep vanishing; is another compact running?")
    return Compaction(merged, written, num_clips)


def _is_sound(segment: SegmentIndex) -> bool:
    try:
        bad: list[int] | str = damaged_clips(segment)
    except SegmentDamagedError as error:
        bad = str(error)
    if bad:
        logger.warning("%s: damaged, so it is left as it is; type `aqa cache verify`", segment.path)
    return not bad


def _keys(segment: SegmentIndex) -> list[tuple[bytes, bytes, bytes]]:
    frames = [row.tobytes() for row in segment.frame_index]
    return list(zip(segment.clip_ids, segment.source_ids, frames, strict=True))


def _newest_rows(segments: Sequence[SegmentIndex]) -> list[list[int]]:
    """For each segment, the rows of which no newer segment holds a copy."""
    seen: set[tuple[bytes, bytes, bytes]] = set()
    kept: list[list[int]] = []
    for segment in reversed(segments):
        rows = []
        for row, key in enumerate(_keys(segment)):
            if key not in seen:
                seen.add(key)
                rows.append(row)
        kept.append(rows)
    return kept[::-1]


def _merge(
    cache: FeatureCache, segments: Sequence[SegmentIndex], rows: Sequence[list[int]], count: int
) -> Path:
    tables = [read_table(segment) for segment in segments]
    parts = list(zip(tables, rows, strict=True))
    now = datetime.now(UTC)
    path = cache.folder / segment_name(now)
    write_segment(
        path,
        fingerprint_sha256=cache.identity.fingerprint.sha256,
        table=SegmentTable(
            view_names=segments[0].view_names,
            clip_ids=[table.clip_ids[row] for table, kept in parts for row in kept],
            source_ids=[table.source_ids[row] for table, kept in parts for row in kept],
            frame_index=np.concatenate([table.frame_index[kept] for table, kept in parts]),
            pts_seconds=np.concatenate([table.pts_seconds[kept] for table, kept in parts]),
            digests=np.concatenate([table.digests[kept] for table, kept in parts]),
        ),
        feature_blocks=_kept_features(segments, tables, rows),
        feature_shape=(count, *segments[0].feature_shape[1:]),
        machines=_merged_machines(segments),
        now=now,
    )
    return path


def _kept_features(
    segments: Sequence[SegmentIndex], tables: Sequence[SegmentTable], rows: Sequence[list[int]]
) -> Iterator[FeatureArray]:
    for segment, table, kept in zip(segments, tables, rows, strict=True):
        wanted = np.array(kept, dtype=np.int64)
        for start, block in read_features(segment):
            # Again, although it was hashed before: what is written must be what was checked.
            if mismatches(table, start, block):
                raise SegmentDamagedError(f"{segment.path}: changed while it was merged")
            inside = wanted[(wanted >= start) & (wanted < start + len(block))]
            yield block[inside - start]


def _merged_machines(segments: Sequence[SegmentIndex]) -> list[Facts]:
    machines: list[Facts] = []
    for segment in segments:
        machines += [facts for facts in segment.machines if facts not in machines]
    return machines


@dataclass(frozen=True)
class Garbage:
    """Result of :func:`collect_garbage`: files that were, or would be, removed.

    Attributes
    ----------
    segments : list of Path
    temporaries : list of Path
        Left behind by killed writers of this machine.
    num_bytes : int
    """

    segments: list[Path]
    temporaries: list[Path]
    num_bytes: int


def collect_garbage(
    folder: Path, *, wanted: WantedClips | None = None, dry_run: bool = False
) -> Garbage:
    """Remove what nobody can want any more.

    Parameters
    ----------
    folder : Path
    wanted : WantedClips, optional
        With it, segments go of which no clip is wanted, whatever their views. Without
        it, only those whose every clip lies, for the same source and positions and with
        all their views, in newer segments.
    dry_run : bool
        Only say what would go.

    Raises
    ------
    CacheError
        There is no cache.
    SetupError
        The folder cannot be written.
    """
    cache = FeatureCache.open(folder)
    unwanted = [
        segment
        for segment in cache.segments
        if wanted is not None and not wanted.match(segment)[1].any()
    ]
    rest = [segment for segment in cache.segments if segment not in unwanted]
    superseded = _superseded(rest)
    if superseded:
        # A copy only counts if it is sound; hashing is worth it only now.
        sound = [segment for segment in rest if segment in superseded or _is_sound(segment)]
        superseded = _superseded(sound)
    removed = unwanted + superseded
    temporaries = stale_temporaries(folder)
    num_bytes = sum(segment.file_bytes for segment in removed)
    for path in temporaries:
        with contextlib.suppress(FileNotFoundError):
            num_bytes += path.stat().st_size
    segments = [segment.path for segment in removed]
    if not dry_run:
        _remove([*segments, *temporaries])
    return Garbage(segments, temporaries, num_bytes)


def _superseded(segments: Sequence[SegmentIndex]) -> list[SegmentIndex]:
    """Segments whose every clip lies, with all their views, in newer ones that stay."""
    superseded: list[SegmentIndex] = []
    views_of: dict[tuple[bytes, bytes, bytes], set[str]] = {}
    for segment in reversed(segments):
        keys = _keys(segment)
        views = set(segment.view_names)
        if all(views <= views_of.get(key, set()) for key in keys):
            superseded.append(segment)
            continue
        for key in keys:
            views_of.setdefault(key, set()).update(views)
    return superseded


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, path) from error
