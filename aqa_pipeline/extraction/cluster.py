"""Stage one on a dask cluster: one task is one shard, from the video to the segment.

Decoding and the network run on the worker, so that no frame ever crosses the network:
a worker is sent some paths and sends back counts. All machines see the manifest, the
videos, the weights and the cache under the same paths.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aqa_pipeline.backbone.weights import weights_identity
from aqa_pipeline.cache.fingerprint import Fingerprint, cache_folder, fingerprint_of
from aqa_pipeline.config import DEVICE, ExtractConfig
from aqa_pipeline.dask_client import connect
from aqa_pipeline.datasets.manifest import read_manifest
from aqa_pipeline.device import device_name
from aqa_pipeline.errors import CacheError
from aqa_pipeline.extraction.choose_precision import find_precision
from aqa_pipeline.extraction.extract import ExtractSummary, default_workers, extract, i3d_backbone
from aqa_pipeline.extraction.plan import plan_extraction
from aqa_pipeline.extraction.shards import Shard
from aqa_pipeline.media.views import views_of

logger = logging.getLogger(__name__)

#: Shards for each worker: the quick ones take over from the slow at the end.
_SHARDS_A_WORKER = 2


@dataclass(frozen=True)
class ClusterJob:
    """What a worker must know.

    Attributes
    ----------
    manifest_path, cache_root, weights : Path
        The same on every machine.
    fingerprint : Fingerprint
        What the machine that asks expects; a worker with other software or weights refuses.
    config : ExtractConfig
    retry_failed : bool
    device : str
        As a user names it; ``auto``: what each worker has.
    """

    manifest_path: Path
    cache_root: Path
    weights: Path
    fingerprint: Fingerprint
    config: ExtractConfig
    retry_failed: bool = False
    device: str = DEVICE


def extract_on_cluster(
    job: ClusterJob,
    *,
    scheduler: str,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> ExtractSummary:
    """Extract a manifest on all workers of a cluster.

    Parameters
    ----------
    job : ClusterJob
    scheduler : str
        Address of the dask scheduler.
    advance : callable
        Told ``(shards done, shards in all)``.

    Raises
    ------
    SetupError
        dask is not installed, the scheduler cannot be reached or has no workers.
    CacheError
        A worker's software or weights are not those of this machine.
    """
    from joblib import Parallel, delayed, parallel_config

    with connect(scheduler) as client:
        count = len(client.nthreads()) * _SHARDS_A_WORKER
        advance(0, count)
        results = []
        with parallel_config(backend="dask", client=client):
            # A task is minutes long: no batches of them, and all are queued at once.
            parallel = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
            shards = [Shard(i, count) for i in range(1, count + 1)]
            for summary in parallel(delayed(extract_shard)(job, shard) for shard in shards):
                results.append(summary)
                advance(len(results), count)
    return _total(job, results)


def extract_shard(job: ClusterJob, shard: Shard) -> ExtractSummary:
    """One shard, on whatever machine this runs.

    Raises
    ------
    CacheError
        This machine would compute other numbers than ``job.fingerprint`` says.
    SetupError
        As :func:`aqa_pipeline.extraction.extract.extract`.
    """
    _allow_children()
    manifest = read_manifest(job.manifest_path)
    weights_sha256 = weights_identity(job.weights)
    device = device_name(job.device)
    precision = find_precision(
        job.fingerprint.precision,
        device=device,
        manifest=manifest,
        cache_root=job.cache_root,
        weights=job.weights,
        weights_sha256=weights_sha256,
    )
    fingerprint = fingerprint_of(
        manifest.protocol, weights_sha256=weights_sha256, precision=precision
    )
    differing = fingerprint.differences(job.fingerprint)
    if differing:
        raise CacheError(
            "a worker of the cluster would compute other features (here = worker, there = this "
            f"machine: {'; '.join(differing)}); install the same version and weights everywhere"
        )
    plan = plan_extraction(
        manifest,
        cache_root=job.cache_root,
        fingerprint=fingerprint,
        views=views_of(job.config.views, shift_frames=manifest.protocol.shift_frames),
        shard=shard,
        retry_failed=job.retry_failed,
    )
    backbone = i3d_backbone(
        job.weights,
        manifest.protocol,
        device=device,
        precision=precision,
        num_clips=sum(len(item.views) for item in plan.to_do),
    )
    workers = job.config.workers or default_workers(device)
    config = dataclasses.replace(job.config, workers=workers)
    return extract(plan, backbone=backbone, config=config)


def _allow_children() -> None:
    # A dask worker is a daemonic process, which may not start others, lest they outlive it.
    # Decoding processes do not: each ends with its parent.
    multiprocessing.current_process()._config.pop("daemon", None)  # type: ignore[attr-defined]


def _total(job: ClusterJob, results: list[ExtractSummary]) -> ExtractSummary:
    name = job.manifest_path.stem
    total = ExtractSummary(
        folder=cache_folder(job.cache_root, name, job.fingerprint), num_wanted=0, num_cached=0
    )
    for part in results:
        total.num_wanted += part.num_wanted
        total.num_cached += part.num_cached
        total.num_extracted += part.num_extracted
        total.num_elsewhere += part.num_elsewhere
        total.failures += part.failures
        total.clamped |= part.clamped
        total.seconds = max(total.seconds, part.seconds)
    return total
