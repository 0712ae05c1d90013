"""Extraction on a real dask cluster of two processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aqa_pipeline.backbone.weights import weights_identity
from aqa_pipeline.cache.fingerprint import fingerprint_of
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import ExtractConfig
from aqa_pipeline.errors import CacheError, SetupError
from aqa_pipeline.extraction.cluster import extract_on_cluster
from aqa_pipeline.extraction.extract import ExtractJob
from tests.support.fake_aqa import run_aqa, use_fake_network, write_fake_weights
from tests.support.places import ROOT
from tests.support.small_project import make_project

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Address of a scheduler with two worker processes that use the fake network."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.run(sys.path.insert, 0, str(ROOT))
        client.run(use_fake_network)
        yield cluster.scheduler_address


@pytest.fixture
def project(tmp_path: Path) -> Path:
    make_project(tmp_path, clips_per_video=6)
    write_fake_weights(tmp_path / "w.safetensors")
    return tmp_path


def make_job(project: Path, *, weights_sha256: str | None = None) -> ExtractJob:
    from aqa_pipeline.datasets.manifest import read_manifest

    weights = project / "w.safetensors"
    manifest = read_manifest(project / "manifests" / "small.csv")
    sha256 = weights_sha256 or weights_identity(weights)
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256=sha256)
    config = ExtractConfig(workers=1)
    return ExtractJob(manifest, project / "cache", weights, "auto", fingerprint, config)


def test_every_clip_is_extracted_once_by_some_worker(project: Path, scheduler: str) -> None:
    told: list[tuple[int, int]] = []
    job = make_job(project)
    summary = extract_on_cluster(job, scheduler=scheduler, progress=lambda *now: told.append(now))
    assert (summary.num_wanted, summary.num_extracted, summary.failures) == (12, 12, [])
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    segments = FeatureCache.open(summary.folder).segments
    assert len([name for segment in segments for name in segment.clip_ids]) == 12
    assert extract_on_cluster(job, scheduler=scheduler).num_cached == 12
    again = run_aqa(project, "extract", "--dataset", "small", "--weights", "w.safetensors")
    assert again.returncode == 0, again.stderr


def test_the_command_line_reaches_the_cluster(project: Path, scheduler: str) -> None:
    (project / "videos" / "v1.mp4").unlink()
    done = run_aqa(
        project,
        *("extract", "--dataset", "small", "--weights", "w.safetensors", "--workers", "1"),
        *("--backend", "dask", "--scheduler", scheduler),
    )
    assert done.returncode == 3, done.stderr
    assert "extract: 4/4 shards" in done.stderr
    assert "failed: 6 open" in done.stdout


def test_a_worker_with_other_weights_refuses(project: Path, scheduler: str) -> None:
    job = make_job(project, weights_sha256="11" * 32)
    with pytest.raises(CacheError, match="worker of the cluster would compute other features"):
        extract_on_cluster(job, scheduler=scheduler)


def test_no_scheduler_is_one_sentence(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aqa_pipeline.dask_client._CONNECT_SECONDS", 0.5)
    with pytest.raises(SetupError, match=r"no dask scheduler at tcp://127\.0\.0\.1:9"):
        extract_on_cluster(make_job(project), scheduler="tcp://127.0.0.1:9")


def test_backend_and_scheduler_go_together(project: Path) -> None:
    dask, scheduler = ("--backend", "dask"), ("--scheduler", "tcp://x:1")
    for extra, sentence in [
        (dask, "--backend dask and --scheduler ADDRESS go together"),
        (scheduler, "--backend dask and --scheduler ADDRESS go together"),
        ((*dask, *scheduler, "--shard", "1/2"), "makes its own shards; leave out --shard"),
    ]:
        done = run_aqa(project, "extract", "--dataset", "small", *extra)
        assert done.returncode == 2
        assert sentence in done.stderr
