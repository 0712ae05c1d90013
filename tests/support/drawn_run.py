"""A run whose heads are drawn, not fitted: quick, and as crooked as a fitted one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from aqa_pipeline.config import FitConfig, HeadConfig, Protocol
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.labels import LabelScale
from aqa_pipeline.heads.head import Head
from aqa_pipeline.heads.outputs import fit_output_layer
from aqa_pipeline.runs.config import RunConfig
from aqa_pipeline.runs.folder import Run
from tests.support.planted import planted_clips


def drawn_run(
    *, seeds: tuple[int, ...] = (0, 1), pool: FeatureSet | None = None, **config: object
) -> Run:
    """K heads with drawn weights over planted exemplars; ``config`` is the head's."""
    pool = planted_clips(20) if pool is None else pool
    head_config = HeadConfig(**{"hidden": 8, "num_groups": 4, "reduced_dim": 5, **config})  # type: ignore[arg-type]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    contrastive = head_config.mode == "contrastive"
    deltas = np.random.default_rng(0).normal(scale=4, size=200)
    targets = deltas if contrastive else pool.label
    head = Head(
        head_config,
        num_snippets=pool.features.shape[1],
        feature_dim=pool.features.shape[2],
        output=fit_output_layer(
            head_config, [targets] * len(seeds), score_range=30.0, generators=generators
        ),
        epsilon=30.0,
        generators=generators,
    )
    return Run(
        folder=Path("drawn"),
        head=head.eval(),
        exemplars=pool,
        protocol=Protocol(name="planted", exemplar_key=("difficulty",), label_transform="raw"),
        labels=LabelScale("raw"),
        fit_config=FitConfig(num_seeds=len(seeds)),
        config=RunConfig(dataset="planted"),
    )


def one_clip(seed: int = 7, **planted: object) -> FeatureSet:
    """A clip of difficulty 2, like the pool's and not in it."""
    return planted_clips(2, difficulties=(2.0,), seed=seed, **planted).take([0])  # type: ignore[arg-type]
