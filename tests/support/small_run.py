"""A fitted run on the tiny videos of :mod:`.small_project`, ready to score such videos."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from aqa_pipeline.cache.fingerprint import fingerprint_of
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import ExtractConfig, FitConfig, HeadConfig, Protocol, ScoreConfig
from aqa_pipeline.datasets.manifest import Manifest, read_manifest
from aqa_pipeline.datasets.protocol import write_protocol
from aqa_pipeline.extraction.plan import plan_extraction
from aqa_pipeline.extraction.work import extract
from aqa_pipeline.runs.folder import read_run, run_folders
from aqa_pipeline.scoring.scorer import Scorer
from aqa_pipeline.training.fit import fit_dataset
from tests.support.small_project import encode_numbers, fake_backbone, make_project

CPU = torch.device("cpu")
FIT = FitConfig(epochs=2, num_seeds=2, batch_size=8, num_exemplars=None, validation_fraction=0.4)
HEAD = HeadConfig(hidden=16, reduced_dim=4)


def make_run(
    root: Path, *, protocol: Protocol | None = None, fit: FitConfig = FIT, head: HeadConfig = HEAD
) -> tuple[Manifest, Path]:
    """A project with videos, cache and ``runs/small`` below ``root``."""
    manifest = make_project(root, clips_per_video=20)
    if protocol is not None:
        write_protocol(manifest.path.with_suffix(".toml"), protocol)
        manifest = read_manifest(manifest.path)
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256="00" * 32)
    plan = plan_extraction(manifest, cache_root=root / "cache", fingerprint=fingerprint)
    extract(plan, backbone=fake_backbone, config=ExtractConfig(workers=1))
    folder = root / "runs" / "small"
    fit_dataset(
        manifest,
        FeatureCache.open(plan.folder),
        folder,
        head_config=head,
        fit_config=fit,
        device=CPU,
    )
    return manifest, folder


def load_scorer(folder: Path, **config: Any) -> Scorer:
    """The scorer of a run folder with the network that reads frame numbers."""
    runs = [read_run(own, device=CPU) for own in run_folders(folder)]
    return Scorer(
        runs,
        encode_numbers,
        config=dataclasses.replace(ScoreConfig(), **config),
        snippet_backbone=fake_backbone,
    )
