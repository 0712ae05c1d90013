"""Stage one as one call: a manifest into its feature cache.

.. code-block:: python

    from aqa_pipeline import extract_dataset

    summary = extract_dataset("manifests/diving.csv", workers=4)
    summary.num_extracted, summary.failures
    cache = summary.open_cache()

Everything that extracts comes through here: `aqa extract`, a worker of a cluster, `aqa demo`
and the end of a fine-tuning.

Source: Sec. 4.1 (103 frames, 10 snippets of 16, I3D).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from aqa_pipeline.backbone.encoder import Backbone, i3d_backbone
from aqa_pipeline.backbone.weights import find_weights, weights_identity
from aqa_pipeline.cache.failures import Failure, FailureLog
from aqa_pipeline.cache.fingerprint import Fingerprint, ensure_cache, fingerprint_of
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import DEVICE, PRECISION, ExtractConfig
from aqa_pipeline.datasets.manifest import Manifest, as_manifest
from aqa_pipeline.device import device_name
from aqa_pipeline.errors import ClipError
from aqa_pipeline.extraction.choose_precision import find_precision
from aqa_pipeline.extraction.plan import ClipToDo, ExtractPlan, plan_extraction
from aqa_pipeline.extraction.shards import Shard, parse_shard
from aqa_pipeline.media.views import ViewSet, views_of
from aqa_pipeline.project import Project

_log = logging.getLogger(__name__)

#: Called as ``progress(done, total)``.
Progress = Callable[[int, int], None]


@dataclass
class ExtractSummary:
    """What an extraction did.

    Attributes
    ----------
    folder : Path
    num_wanted, num_cached, num_extracted : int
        Clips of the manifest, those cached before, those added now.
    num_elsewhere : int
        Clips that another process added meanwhile.
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
    num_elsewhere: int = 0
    failures: list[Failure] = field(default_factory=list)
    clamped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def num_done(self) -> int:
        return self.num_cached + self.num_extracted + self.num_elsewhere + len(self.failures)

    def open_cache(self) -> FeatureCache:
        """The cache with these features; errors as :meth:`.FeatureCache.open`."""
        return FeatureCache.open(self.folder)


@dataclass(frozen=True, eq=False)
class ExtractJob:
    """An extraction with all that was left open decided; can be sent to another machine.

    Attributes
    ----------
    manifest : Manifest
    cache_root, weights : Path
    device : str
        On a cluster as a user names it, ``auto`` for what each worker has.
    fingerprint : Fingerprint
        Of the features it makes.
    config : ExtractConfig
    shard : Shard or None
    retry_failed : bool
    """

    manifest: Manifest
    cache_root: Path
    weights: Path
    device: str
    fingerprint: Fingerprint
    config: ExtractConfig
    shard: Shard | None = None
    retry_failed: bool = False

    def plan(self) -> ExtractPlan:
        """Compare the manifest with the cache; errors as :func:`.plan_extraction`."""
        return plan_extraction(
            self.manifest,
            cache_root=self.cache_root,
            fingerprint=self.fingerprint,
            views=views_of(self.config.views, shift_frames=self.manifest.protocol.shift_frames),
            shard=self.shard,
            retry_failed=self.retry_failed,
        )

    def run(self, progress: Progress = lambda done, total: None) -> ExtractSummary:
        """Plan and extract on this machine; errors as :func:`extract_dataset`."""
        plan = self.plan()
        backbone = i3d_backbone(
            self.weights,
            self.manifest.protocol,
            device=self.device,
            precision=self.fingerprint.precision,
            num_clips=sum(len(item.views) for item in plan.to_do),
        )
        workers = self.config.workers or default_workers(self.device)
        config = dataclasses.replace(self.config, workers=workers)
        return extract(plan, backbone=backbone, config=config, progress=progress)


def prepare_job(
    manifest: Manifest | str | Path,
    *,
    cache_root: str | Path | None = None,
    weights: str | Path | None = None,
    device: str = DEVICE,
    precision: str = PRECISION,
    config: ExtractConfig = ExtractConfig(),  # noqa: B008 - frozen
    shard: Shard | str | None = None,
    retry_failed: bool = False,
    on_cluster: bool = False,
    compares: bool = True,
) -> ExtractJob:
    """Decide what :func:`extract_dataset` leaves open; parameters and errors as there.

    Parameters
    ----------
    on_cluster : bool
        Devices are those of the workers, which have no time to compare precisions: ``auto``
        is float32.
    compares : bool
        See :func:`.find_precision`.
    """
    clips = as_manifest(manifest)
    root = Project.find().cache if cache_root is None else Path(cache_root)
    weights_path = find_weights(None if weights is None else Path(weights))
    weights_sha256 = weights_identity(weights_path)
    if on_cluster:
        precision = "float32" if precision == "auto" else precision
    else:
        device = device_name(device)
        precision = find_precision(
            precision,
            device=device,
            manifest=clips,
            cache_root=root,
            weights=weights_path,
            weights_sha256=weights_sha256,
            compares=compares,
        )
    return ExtractJob(
        manifest=clips,
        cache_root=root,
        weights=weights_path,
        device=device,
        fingerprint=fingerprint_of(
            clips.protocol, weights_sha256=weights_sha256, precision=precision
        ),
        config=config,
        shard=parse_shard(shard, os.environ) if isinstance(shard, str) else shard,
        retry_failed=retry_failed,
    )


def extract_dataset(
    manifest: Manifest | str | Path,
    *,
    cache_root: str | Path | None = None,
    weights: str | Path | None = None,
    device: str = DEVICE,
    precision: str = PRECISION,
    workers: int | None = ExtractConfig.workers,
    clip_timeout_seconds: float = ExtractConfig.clip_timeout_seconds,
    flush_clips: int = ExtractConfig.flush_clips,
    flush_seconds: float = ExtractConfig.flush_seconds,
    strict_window: bool = ExtractConfig.strict_window,
    views: ViewSet = ExtractConfig.views,
    shard: Shard | str | None = None,
    retry_failed: bool = False,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> ExtractSummary:
    """Extract the features of every clip of a manifest that the cache does not have.

    Parameters
    ----------
    manifest : Manifest, str or Path
        Read, or its file.
    cache_root : str, Path or None
        Where caches lie; None: ``cache/`` of the project.
    weights : str, Path or None
        None: what `aqa weights fetch` fetched.
    device : str
        See :func:`aqa_pipeline.device.find_device`.
    precision : str
        See :func:`aqa_pipeline.extraction.choose_precision.find_precision`.
    workers, clip_timeout_seconds, flush_clips, flush_seconds, strict_window, views
        See :class:`aqa_pipeline.config.ExtractConfig`.
    shard : Shard, str or None
        One part of the manifest alone, such as ``2/8``.
    retry_failed : bool
        Try clips again that failed before with the same video and window.
    scheduler : str or None
        Address of a dask scheduler whose workers extract, instead of this machine.
    progress : callable or None
        Called as ``progress(done, total)``: clips, failed ones included; on a cluster, shards.

    Returns
    -------
    ExtractSummary
        With the cache folder, and the clips that failed.

    Raises
    ------
    DataError
        The manifest cannot be used.
    UsageError
        Device, precision or shard are none.
    SetupError
        The weights are missing or damaged, the device lacks memory, the cache cannot be
        written, or there is no such scheduler.
    CacheError
        The cache is damaged, or a worker of the cluster would compute other features.
    """
    job = prepare_job(
        manifest,
        cache_root=cache_root,
        weights=weights,
        device=device,
        precision=precision,
        config=ExtractConfig(
            workers=workers,
            clip_timeout_seconds=clip_timeout_seconds,
            flush_clips=flush_clips,
            flush_seconds=flush_seconds,
            strict_window=strict_window,
            views=views,
        ),
        shard=shard,
        retry_failed=retry_failed,
        on_cluster=scheduler is not None,
    )
    progress = progress or (lambda done, total: None)
    if scheduler is None:
        return job.run(progress)
    from aqa_pipeline.extraction.cluster import extract_on_cluster  # brings dask

    return extract_on_cluster(job, scheduler=scheduler, progress=progress)


def default_workers(device: str = "cpu") -> int:
    """Decoding processes for this machine: the network, if it is on the CPU, needs most cores."""
    cores = os.cpu_count() or 1
    return max(1, min(8, cores // 4) if device == "cpu" else min(16, cores - 1))


def extract(
    plan: ExtractPlan,
    *,
    backbone: Backbone,
    config: ExtractConfig,
    progress: Progress = lambda done, total: None,
) -> ExtractSummary:
    """Carry out a plan.

    Finished clips are flushed to the cache every so often and whenever the run ends, also
    by an exception or a signal: a second call goes on where this one stopped.

    Clips that another process has in hand are waited for, and taken over should it die.

    Parameters
    ----------
    plan : ExtractPlan
    backbone : callable
        Gives the network, see :func:`i3d_backbone`.
    config : ExtractConfig
    progress : callable
        Called as ``progress(done, total)``: clips, failed ones included.

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
    progress(summary.num_done, summary.num_wanted)
    if plan.num_outdated:
        _log.warning(
            "%d clips are cached for another video file or window: extracted again",
            plan.num_outdated,
        )
    _note_missing(plan, summary)
    progress(summary.num_done, summary.num_wanted)
    if plan.to_do:
        from aqa_pipeline.extraction.work import Extraction  # brings the video decoder

        Extraction(plan, summary, config, progress).run(backbone)
    summary.seconds = time.monotonic() - started
    return summary


def _note_missing(plan: ExtractPlan, summary: ExtractSummary) -> None:
    if not plan.missing:
        return
    ensure_cache(plan.folder, plan.fingerprint)
    log = FailureLog(plan.folder)
    for gone in plan.missing:
        failure = failure_of(gone.clip.clip_id, gone.error)
        known = plan.known_failures.get(gone.clip.clip_id)
        if known is None or (known.source_id, known.error) != ("", failure.error):
            log.append(failure)
        summary.failures.append(failure)
        _log.warning("clip %s failed: %s", gone.clip.clip_id, gone.error)


def failure_of(
    clip_id: str, error: ClipError, item: ClipToDo | None = None, attempts: int = 1
) -> Failure:
    """The record of a clip that failed."""
    return Failure(
        clip_id=clip_id,
        source_id=item.source_id if item else "",
        frame_window=item.frame_window if item else (0, 0),
        stage=error.stage,
        error=str(error),
        detail=error.detail,
        attempts=attempts,
    )
