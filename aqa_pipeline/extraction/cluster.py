"""Stage one on a dask cluster: one task is one shard, from the video to the segment.

Decoding and the network run on the worker, so that no frame ever crosses the network:
a worker is sent the manifest and some paths and sends back counts. All machines see the
videos, the weights and the cache under the same paths.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing

from aqa_pipeline.cache.fingerprint import cache_folder
from aqa_pipeline.dask_client import connect
from aqa_pipeline.errors import CacheError
from aqa_pipeline.extraction.extract import ExtractJob, prepare_job
from aqa_pipeline.extraction.shards import Shard
from aqa_pipeline.extraction.work import ExtractSummary, Progress

logger = logging.getLogger(__name__)

#: Shards for each worker: the quick ones take over from the slow at the end.
_SHARDS_A_WORKER = 2


def extract_on_cluster(
    job: ExtractJob, *, scheduler: str, progress: Progress = lambda done, total: None
) -> ExtractSummary:
    """Extract a manifest on all workers of a cluster.

    Parameters
    ----------
    job : ExtractJob
        Its fingerprint is what this machine expects: a worker with other software or weights
        refuses.
    scheduler : str
        Address of the dask scheduler.
    progress : callable
        Called as ``progress(done, total)``: shards.

    Raises
    ------
    SetupError
        dask is not installed, the scheduler cannot be reached or has no workers.
    CacheError
        A worker's software or weights are not those of this machine.
    """
    from joblib import Parallel, delayed, parallel_config

    manifest = dataclasses.replace(job.manifest, path=job.manifest.path.absolute())
    job = dataclasses.replace(
        job, manifest=manifest, cache_root=job.cache_root.absolute(), weights=job.weights.absolute()
    )
    with connect(scheduler) as client:
        count = len(client.nthreads()) * _SHARDS_A_WORKER
        progress(0, count)
        results = []
        with parallel_config(backend="dask", client=client):
            # A task is minutes long: no batches of them, and all are queued at once.
            parallel = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
            shards = [Shard(i, count) for i in range(1, count + 1)]
            for summary in parallel(delayed(extract_shard)(job, shard) for shard in shards):
                results.append(summary)
                progress(len(results), count)
    return _total(job, results)


def extract_shard(job: ExtractJob, shard: Shard) -> ExtractSummary:
    """Extract one shard, on whatever machine this runs.

    Raises
    ------
    CacheError
        This machine would compute other numbers than ``job.fingerprint`` says.
    SetupError
        As :func:`aqa_pipeline.extraction.extract.extract_dataset`.
    """
    _allow_children()
    own = prepare_job(
        job.manifest,
        cache_root=job.cache_root,
        weights=job.weights,
        device=job.device,
        precision=job.fingerprint.precision,
        config=job.config,
        shard=shard,
        retry_failed=job.retry_failed,
    )
    differing = own.fingerprint.differences(job.fingerprint)
    if differing:
        raise CacheError(
            "a worker of the cluster would compute other features (here = worker, there = this "
            f"machine: {'; '.join(differing)}); install the same version and weights everywhere"
        )
    return own.run()


def _allow_children() -> None:
    # A dask worker is a daemonic process, which may not start others, lest they outlive it.
    # Decoding processes do not: each ends with its parent.
    multiprocessing.current_process()._config.pop("daemon", None)  # type: ignore[attr-defined]


def _total(job: ExtractJob, results: list[ExtractSummary]) -> ExtractSummary:
    folder = cache_folder(job.cache_root, job.manifest.name, job.fingerprint)
    total = ExtractSummary(folder=folder, num_wanted=0, num_cached=0)
    for part in results:
        total.num_wanted += part.num_wanted
        total.num_cached += part.num_cached
        total.num_extracted += part.num_extracted
        total.num_elsewhere += part.num_elsewhere
        total.failures += part.failures
        total.clamped |= part.clamped
        total.seconds = max(total.seconds, part.seconds)
    return total
