"""Merging the segments of a feature cache, and removing what nobody can want.

Neither needs the writers or readers to stop. A file is only removed after everything
in it is durable in another one, or when nobody can want it.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from aqa_pipeline.atomic import stale_temporaries, storage_error
from aqa_pipeline.cache.reader import ClipQuery, FeatureCache
from aqa_pipeline.cache.segment import (
    FeatureArray,
    SegmentDamagedError,
    SegmentGoneError,
    SegmentIndex,
    SegmentTable,
    merged_machines,
    mismatches,
    segment_name,
)
from aqa_pipeline.cache.segment_file import damaged_clips, read_features, read_table, write_segment
from aqa_pipeline.errors import CacheError, SetupError

logger = logging.getLogger(__name__)

_ATTEMPTS = 10


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
    num_bytes : int
        Of the segments that were merged: what the merge needs on the disk meanwhile.
    """

    merged: list[Path]
    written: list[Path]
    num_clips: int
    num_bytes: int


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
        No space for the merged file (known before anything is written), or the folder
        cannot be written.
    """
    merged: list[Path] = []
    written: list[Path] = []
    num_clips = num_bytes = 0
    cache = FeatureCache.open(folder)
    for views in sorted({segment.view_names for segment in cache.segments}):
        met_damage = False
        for _ in range(_ATTEMPTS):
            group = [segment for segment in cache.segments if segment.view_names == views]
            try:
                if met_damage:
                    group = [segment for segment in group if _is_sound(segment)]
                if len(group) < 2:
                    break
                rows = _newest_rows(group)
                if not dry_run:
                    _require_space(folder, group)
                    written.append(_merge(cache, group, rows))
            except SegmentGoneError:
                cache.refresh()
                continue
            except SegmentDamagedError:
                # Hashing while merging reads everything once. Only now, with nothing
                # written, is it worth looking for all damage before the next attempt.
                met_damage = True
                continue
            merged += [segment.path for segment in group]
            num_clips += sum(map(len, rows))
            num_bytes += sum(segment.file_bytes for segment in group)
            if not dry_run:
                _remove([segment.path for segment in group])
            break
        else:
            raise CacheError(f"{folder}: segments keep vanishing; is another compact running?")
    return Compaction(merged, written, num_clips, num_bytes)


def _require_space(folder: Path, segments: Sequence[SegmentIndex]) -> None:
    needed = sum(segment.file_bytes for segment in segments)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SetupError(
            f"{folder}: merging needs {needed / 1e6:,.0f} MB for the new file beside the old "
            f"ones, and {free / 1e6:,.0f} MB are free; nothing was changed"
        )


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
    cache: FeatureCache, segments: Sequence[SegmentIndex], rows: Sequence[list[int]]
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
        feature_shape=(sum(map(len, rows)), *segments[0].feature_shape[1:]),
        machines=merged_machines(segments),
        now=now,
    )
    return path


def _kept_features(
    segments: Sequence[SegmentIndex], tables: Sequence[SegmentTable], rows: Sequence[list[int]]
) -> Iterator[FeatureArray]:
    for segment, table, kept in zip(segments, tables, rows, strict=True):
        wanted = np.array(kept, dtype=np.int64)
        for start, block in read_features(segment):
            if mismatches(table, start, block):
                raise SegmentDamagedError(f"{segment.path}: a clip has a wrong hash")
            inside = wanted[(wanted >= start) & (wanted < start + len(block))]
            yield block[inside - start]


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
    folder: Path, *, wanted: ClipQuery | None = None, dry_run: bool = False
) -> Garbage:
    """Remove what nobody can want any more.

    Parameters
    ----------
    folder : Path
    wanted : ClipQuery, optional
        With it, segments go of which no clip is wanted, whatever their views. Without
        it, only those whose every clip lies, for the same source and positions and with
        all their views, in newer segments.
    dry_run : bool
        Only say what would go.

    Raises
    ------
    CacheError
        There is no cache, or nothing in it is wanted.
    SetupError
        The folder cannot be written.
    """
    cache = FeatureCache.open(folder)
    unwanted = [
        segment
        for segment in cache.segments
        if wanted is not None and not wanted.match(segment)[1].any()
    ]
    if unwanted and len(unwanted) == len(cache.segments):
        raise CacheError(
            f"{folder}: not one of its clips is wanted, so nothing was removed: is this the "
            "manifest and the protocol it was made with? If so, delete the folder"
        )
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
