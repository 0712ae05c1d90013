"""Looking after a feature cache: what it holds, whether all of it is sound, quarantine.

None of it needs the writers or readers to stop, and none of it deletes anything; merging
and removing is :mod:`aqa_pipeline.cache.compact`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aqa_pipeline.atomic import fsync_folder, is_temporary, storage_error
from aqa_pipeline.cache.failures import read_failures
from aqa_pipeline.cache.fingerprint import CacheIdentity, MachineInfo
from aqa_pipeline.cache.reader import Damage, FeatureCache
from aqa_pipeline.cache.segment import SegmentDamagedError, SegmentGoneError, merged_machines
from aqa_pipeline.cache.segment_file import damaged_clips

QUARANTINE = "quarantine"


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
    machines: list[MachineInfo]


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
        machines=merged_machines(cache.segments),
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


def verify(
    folder: Path, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Verification:
    """Read every byte of every segment and hash every clip again. Changes nothing.

    Parameters
    ----------
    folder : Path
    progress : callable
        Called as ``progress(done, total)`` with the clips hashed, after each segment.

    Raises
    ------
    CacheError
        There is no cache.
    """
    cache = FeatureCache.open(folder)
    damaged = list(cache.damaged)
    num_clips = num_segments = seen = 0
    total = sum(segment.num_clips for segment in cache.segments)
    progress(0, total)
    for segment in cache.segments:
        seen += segment.num_clips
        try:
            bad = damaged_clips(segment)
        except SegmentGoneError:
            continue  # merged meanwhile; what was merged has been hashed then
        except SegmentDamagedError as error:
            damaged.append(Damage(segment.path, str(error).removeprefix(f"{segment.path}: ")))
            continue
        finally:
            progress(seen, total)
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
