"""The plan of an extraction: clips there, missing, failed, outdated; its bytes and seconds.

Nothing is decoded, and neither torch nor PyAV is imported: a finished cache of a thousand
clips is recognised in about a second.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from aqa_pipeline.atomic import host_name
from aqa_pipeline.cache.failures import Failure, read_failures
from aqa_pipeline.cache.fingerprint import BACKBONE_DIM, Fingerprint, cache_folder, nearest_cache
from aqa_pipeline.cache.load import wanted
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.cache.segment import SegmentIndex
from aqa_pipeline.datasets.locate import LocatedClip, MissingClip, locate, video_index_folder
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.extraction.shards import Shard
from aqa_pipeline.media.views import PLAIN, View

#: Of one clip in a segment besides its features and its window: ids, hash.
_CLIP_BYTES = 200
_SEGMENT = re.compile(r"segment-(\d{8}T\d{6}\.\d{6})Z-([^-]+)-(\d+)-[0-9a-f]{8}\.h5")


@dataclass(frozen=True, eq=False)
class ClipToDo(LocatedClip):
    """A clip of which some view is not in the cache.

    Attributes
    ----------
    views : tuple of View
        Those that are not.
    """

    views: tuple[View, ...] = (PLAIN,)

    @property
    def frame_window(self) -> tuple[int, int]:
        """Half-open: first position and the one after the last, before clamping."""
        return int(self.positions[0]), int(self.positions[-1]) + 1

    @property
    def key(self) -> str:
        """Everything that identifies the clip; two processes give it the same key."""
        return "\n".join([self.clip.clip_id, self.source_id, self.positions.tobytes().hex()])

    def failed_as(self, failure: Failure | None) -> bool:
        """Whether a failure is of this clip with this video and window."""
        return (
            failure is not None
            and failure.source_id == self.source_id
            and failure.frame_window == self.frame_window
        )


@dataclass(frozen=True, eq=False)
class ExtractPlan:
    """What an extraction would do.

    Attributes
    ----------
    manifest : Manifest
        Only the clips of the shard, if there is one.
    fingerprint : Fingerprint
    folder : Path
        The cache folder.
    index_folder : Path
    views : tuple of View
        Those wanted of every clip.
    to_do : list of ClipToDo
    missing : list of MissingClip
        Clips whose video is not there or cannot be read.
    failed_before : list of Failure
        Clips that failed earlier with the same video and window; not tried again unless
        asked.
    num_cached : int
        Clips of which all views are there.
    num_outdated : int
        Clips of ``to_do`` that are cached for another video file or window.
    cache : FeatureCache or None
        As it was when the plan was made; None: there is no folder yet.
    known_failures : dict of str to Failure
        Of any clip, when the plan was made.
    """

    manifest: Manifest
    fingerprint: Fingerprint
    folder: Path
    index_folder: Path
    views: tuple[View, ...]
    to_do: list[ClipToDo]
    missing: list[MissingClip]
    failed_before: list[Failure]
    num_cached: int
    num_outdated: int
    cache: FeatureCache | None
    known_failures: Mapping[str, Failure]


def plan_extraction(
    manifest: Manifest,
    *,
    cache_root: Path,
    fingerprint: Fingerprint,
    views: Sequence[View] = (PLAIN,),
    shard: Shard | None = None,
    retry_failed: bool = False,
) -> ExtractPlan:
    """Compare a manifest, or one shard of it, with its cache.

    Raises
    ------
    CacheError
        The cache folder is damaged.
    """
    if shard is not None:
        manifest = shard_of(manifest, shard)
    index_folder = video_index_folder(cache_root)
    located, missing = locate(manifest, index_folder=index_folder)
    folder = cache_folder(cache_root, manifest.name, fingerprint)
    cache = None
    known_failures: dict[str, Failure] = {}
    if (folder / "fingerprint.json").exists():
        cache = FeatureCache.open(folder, fingerprint=fingerprint)
        known_failures = read_failures(folder)
    to_do: list[ClipToDo] = []
    failed_before: list[Failure] = []
    for item, lacking in zip(located, lacking_views(cache, located, views), strict=True):
        todo = ClipToDo(item.clip, item.source_id, item.positions, lacking)
        failure = known_failures.get(item.clip.clip_id)
        if not lacking:
            continue
        if failure is not None and todo.failed_as(failure) and not retry_failed:
            failed_before.append(failure)
        else:
            to_do.append(todo)
    outdated = 0 if cache is None or not to_do else cache.outdated(wanted(to_do)).sum()
    return ExtractPlan(
        manifest=manifest,
        fingerprint=fingerprint,
        folder=folder,
        index_folder=index_folder,
        views=tuple(views),
        to_do=to_do,
        missing=missing,
        failed_before=failed_before,
        num_cached=len(located) - len(to_do) - len(failed_before),
        num_outdated=int(outdated),
        cache=cache,
        known_failures=known_failures,
    )


def shard_of(manifest: Manifest, shard: Shard) -> Manifest:
    """The manifest with the clips of one shard only."""
    clips = manifest.clips
    frames = clips["end_frame"].fillna(clips["start_frame"]).fillna(0)
    rows = shard.rows(clips["video"].tolist(), [int(frame) for frame in frames])
    return dataclasses.replace(manifest, clips=clips.iloc[rows])


def lacking_views(
    cache: FeatureCache | None, located: Sequence[LocatedClip], views: Sequence[View]
) -> list[tuple[View, ...]]:
    """For each clip those of the views that are not in the cache."""
    if cache is None or not located:
        return [tuple(views)] * len(located)
    found = cache.cached(wanted(located), view_names=[view.name for view in views])
    return [
        tuple(view for view, there in zip(views, row, strict=True) if not there)
        for row in found.tolist()
    ]


@dataclass(frozen=True)
class Estimate:
    """What a plan would cost.

    Attributes
    ----------
    num_bytes : int
        Of the new segments.
    views_per_second : float or None
        As measured on this machine before; None if it never was.
    seconds : float or None
    differences : list of str
        What differs between this plan's fingerprint and ``nearest``.
    nearest : Path or None
        Where there is no cache for the plan's settings: the cache of the same data set
        that differs least.
    """

    num_bytes: int
    views_per_second: float | None
    seconds: float | None
    differences: list[str]
    nearest: Path | None


def estimate(plan: ExtractPlan) -> Estimate:
    """How much a plan would write, how long it would take, and which cache is like it."""
    num_views = sum(len(item.views) for item in plan.to_do)
    fingerprint = plan.fingerprint
    segments = [] if plan.cache is None else plan.cache.segments
    dim = segments[-1].feature_shape[3] if segments else BACKBONE_DIM
    num_bytes = num_views * len(fingerprint.snippet_starts) * dim * 4
    num_bytes += len(plan.to_do) * (fingerprint.window_frames * 16 + _CLIP_BYTES)
    rate = measured_rate(segments)
    near = nearest_cache(plan.folder.parent, fingerprint) if plan.cache is None else None
    return Estimate(
        num_bytes=num_bytes,
        views_per_second=rate,
        seconds=num_views / rate if rate else None,
        differences=near[1] if near else [],
        nearest=near[0] if near else None,
    )


def measured_rate(segments: Sequence[SegmentIndex]) -> float | None:
    """Views a second of the latest process of this machine that wrote two segments or more.

    A segment's name says when it was begun and by which process: what lies in all but
    the first was extracted between the first and the last of these times.
    """
    runs: dict[str, list[tuple[datetime, int]]] = {}
    for segment in segments:
        match = _SEGMENT.fullmatch(segment.path.name)
        if match is None or match[2] != host_name():
            continue
        when = datetime.strptime(match[1], "%Y%m%dT%H%M%S.%f")
        views = segment.num_clips * len(segment.view_names)
        runs.setdefault(match[3], []).append((when, views))
    for times in sorted(runs.values(), key=lambda run: run[-1][0], reverse=True):
        seconds = (times[-1][0] - times[0][0]).total_seconds()
        if seconds > 0:
            return sum(views for _, views in times[1:]) / seconds
    return None
