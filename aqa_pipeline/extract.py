"""Stage one: every clip of a manifest into the feature cache.

Decoding runs in other processes and the network in this one. On a CPU the network's
batch is one clip's snippets, always the same shape, so that no feature depends on which
clips were extracted beside it.

Source: Sec. 4.1 (103 frames, 10 snippets of 16, I3D).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aqa_pipeline.config import PIXEL_PRESETS, ExtractConfig, Protocol
from aqa_pipeline.decode_pool import Decoded, DecodePool, DecodeTask, decode_runs
from aqa_pipeline.errors import ClipError
from aqa_pipeline.failures import Failure, FailureLog, read_failures
from aqa_pipeline.feature_cache import FeatureCache
from aqa_pipeline.fingerprint import Fingerprint, cache_folder, machine_facts
from aqa_pipeline.manifest import Manifest
from aqa_pipeline.plan import LocatedClip, MissingClip, locate, video_index_folder, wanted
from aqa_pipeline.segment_writer import ClipFeatures, SegmentWriter
from aqa_pipeline.snippets import snippet_index

_log = logging.getLogger(__name__)

_CLAMPS_TOLD = 5  #: more clamped clips than this are only counted

#: Frames of one clip, uint8 (window_frames, crop, crop, 3), to snippet features, float32
#: (snippets, dim).
Encode = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]

#: Loads the network; called only when there is a clip to extract.
Backbone = Callable[[], Encode]


@dataclass(frozen=True, eq=False)
class ExtractPlan:
    """What an extraction would do.

    Attributes
    ----------
    manifest : Manifest
    fingerprint : Fingerprint
    folder : Path
        The cache folder.
    index_folder : Path
    to_do : list of LocatedClip
    missing : list of MissingClip
        Clips whose video is not there or cannot be read.
    failed_before : list of Failure
        Clips that failed earlier with the same video and window; not tried again unless
        asked.
    num_cached : int
    num_outdated : int
        Clips of ``to_do`` that are cached for another video file or window.
    """

    manifest: Manifest
    fingerprint: Fingerprint
    folder: Path
    index_folder: Path
    to_do: list[LocatedClip]
    missing: list[MissingClip]
    failed_before: list[Failure]
    num_cached: int
    num_outdated: int


@dataclass
class ExtractSummary:
    """What an extraction did.

    Attributes
    ----------
    folder : Path
    num_wanted, num_cached, num_extracted : int
        Clips of the manifest, those cached before, those added now.
    failures : list of Failure
        Of this and earlier runs, for clips of this manifest.
    clamped : dict of str to int
        Clip id -> how many frames of its window were repeated.
    seconds : float
    """

    folder: Path
    num_wanted: int
    num_cached: int
    num_extracted: int = 0
    failures: list[Failure] = field(default_factory=list)
    clamped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def plan_extraction(
    manifest: Manifest,
    *,
    cache_root: Path,
    fingerprint: Fingerprint,
    retry_failed: bool = False,
) -> ExtractPlan:
    """Compare a manifest with its cache.

    Raises
    ------
    CacheError
        The cache folder is damaged.
    """
    index_folder = video_index_folder(cache_root)
    located, missing = locate(manifest, index_folder=index_folder)
    folder = cache_folder(cache_root, manifest.name, fingerprint)
    if not (folder / "fingerprint.json").exists():
        return ExtractPlan(manifest, fingerprint, folder, index_folder, located, missing, [], 0, 0)
    cache = FeatureCache.open(folder, fingerprint=fingerprint)
    request = wanted(located)
    is_cached = cache.cached(request)[:, 0]
    is_outdated = cache.outdated(request)
    known_failures = {} if retry_failed else read_failures(folder)
    to_do, failed_before = [], []
    for item, cached in zip(located, is_cached, strict=True):
        failure = known_failures.get(item.clip.clip_id)
        if cached:
            continue
        if (
            failure
            and failure.source_id == item.source_id
            and (failure.frame_window == _frame_window(item))
        ):
            failed_before.append(failure)
        else:
            to_do.append(item)
    return ExtractPlan(
        manifest=manifest,
        fingerprint=fingerprint,
        folder=folder,
        index_folder=index_folder,
        to_do=to_do,
        missing=missing,
        failed_before=failed_before,
        num_cached=int(is_cached.sum()),
        num_outdated=int(is_outdated.sum()),
    )


def _frame_window(item: LocatedClip) -> tuple[int, int]:
    return int(item.positions[0]), int(item.positions[-1]) + 1


def default_workers() -> int:
    """Decoding processes for this machine: the network needs most of the cores."""
    return max(1, min(8, (os.cpu_count() or 1) // 4))


def extract(
    plan: ExtractPlan,
    *,
    backbone: Backbone,
    config: ExtractConfig,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> ExtractSummary:
    """Carry out a plan.

    Finished clips are flushed to the cache every so often and whenever the run ends, also
    by an exception or a signal: a second call goes on where this one stopped.

    Parameters
    ----------
    plan : ExtractPlan
    backbone : callable
        Gives the network, see :func:`i3d_backbone`.
    config : ExtractConfig
    advance : callable
        Told ``(clips done, clips in all)``, failed ones included.

    Raises
    ------
    SetupError
        The cache cannot be written (disk full, read-only), or the weights are damaged.
    """
    started = time.monotonic()
    summary = ExtractSummary(
        folder=plan.folder,
        num_wanted=len(plan.manifest),
        num_cached=plan.num_cached,
        failures=list(plan.failed_before),
    )
    done = plan.num_cached + len(plan.failed_before)
    advance(done, summary.num_wanted)
    sources = {item.clip.clip_id: item for item in plan.to_do}
    with SegmentWriter(plan.folder, plan.fingerprint, config=config, machine=_facts()) as writer:
        log = FailureLog(plan.folder)
        for gone in plan.missing:
            _note_failure(summary, log, gone.clip.clip_id, gone.error)
            done += 1
        advance(done, summary.num_wanted)
        if not plan.to_do:
            return summary
        tasks = [
            DecodeTask(
                clip_id=item.clip.clip_id,
                video=item.clip.video,
                positions=item.positions,
                pixels=PIXEL_PRESETS[plan.manifest.protocol.pixels],
                index_folder=plan.index_folder,
                strict_window=config.strict_window,
            )
            for item in plan.to_do
        ]
        encode = backbone()
        workers = config.workers or default_workers()
        with DecodePool(workers=workers, clip_timeout_seconds=config.clip_timeout_seconds) as pool:
            for decoded in pool.decode(decode_runs(tasks)):
                item = sources[decoded.task.clip_id]
                try:
                    writer.add(_encoded(decoded, item, encode))
                except ClipError as error:
                    _note_failure(summary, log, item.clip.clip_id, error, item, decoded.attempts)
                else:
                    summary.num_extracted += 1
                    _note_clamped(summary, decoded)
                done += 1
                advance(done, summary.num_wanted)
    summary.seconds = time.monotonic() - started
    return summary


def _encoded(decoded: Decoded, item: LocatedClip, encode: Encode) -> ClipFeatures:
    if decoded.clip is None:
        raise decoded.error or ClipError(f"{item.clip.video}: not decoded", stage="decode")
    return ClipFeatures(
        clip_id=item.clip.clip_id,
        source_id=item.source_id,
        frame_index=item.positions,
        pts_seconds=decoded.clip.pts_seconds,
        features=encode(decoded.clip.frames)[None],
    )


def _note_failure(
    summary: ExtractSummary,
    log: FailureLog,
    clip_id: str,
    error: ClipError,
    item: LocatedClip | None = None,
    attempts: int = 1,
) -> None:
    failure = Failure(
        clip_id=clip_id,
        source_id=item.source_id if item else "",
        frame_window=_frame_window(item) if item else (0, 0),
        stage=error.stage,
        error=str(error),
        detail=error.detail,
        attempts=attempts,
    )
    log.append(failure)
    summary.failures.append(failure)
    _log.warning("clip %s failed: %s", clip_id, error)


def _note_clamped(summary: ExtractSummary, decoded: Decoded) -> None:
    clip, task = decoded.clip, decoded.task
    if clip is None or not clip.num_clamped:
        return
    summary.clamped[task.clip_id] = clip.num_clamped
    if len(summary.clamped) <= _CLAMPS_TOLD:
        _log.warning(
            "clip %s: %d of %d frames lie outside %s (%d frames); its first or last frame is "
            "repeated",
            task.clip_id,
            clip.num_clamped,
            len(task.positions),
            task.video,
            clip.video_frames,
        )


def _facts() -> dict[str, str | int | float | bool | None]:
    import torch

    return machine_facts(device="cpu", threads=torch.get_num_threads())


def i3d_backbone(weights: Path, protocol: Protocol) -> Backbone:
    """The fast form of I3D for a protocol's clips.

    Returns
    -------
    callable
        Raises SetupError when called and the weights are missing or damaged.
    """
    pixels = PIXEL_PRESETS[protocol.pixels]
    index = snippet_index(protocol.snippet_starts, snippet_frames=protocol.snippet_frames)

    def load() -> Encode:
        import torch

        from aqa_pipeline.i3d import normalise
        from aqa_pipeline.i3d_fast import fast_form
        from aqa_pipeline.weights import load_i3d

        network = fast_form(load_i3d(weights)[0])

        def encode(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            snippets = torch.from_numpy(frames[index])  # (snippets, frames, crop, crop, 3)
            features: npt.NDArray[np.float32] = network.features(
                normalise(snippets, pixels)
            ).numpy()
            return features

        return encode

    return load
