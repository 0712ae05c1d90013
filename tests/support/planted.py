"""A small feature set whose scores are planted in its features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aqa_pipeline.core.featureset import FeatureSet


def planted_clips(
    count: int = 60,
    *,
    difficulties: Sequence[float] = (2.0, 3.0),
    snippets: int = 3,
    dim: int = 6,
    noise: float = 0.1,
    seed: int = 0,
) -> FeatureSet:
    """Clips whose raw score is linear in the mean of their snippets, plus noise.

    Labels are raw scores of about 20 +- 3; the exemplar key is the difficulty.
    """
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, snippets, dim))
    signal = features.mean(axis=1) @ np.linspace(1, 2, dim)
    raw = 20 + 3 * signal / signal.std() + noise * rng.normal(size=count)
    difficulty = rng.choice(difficulties, size=count)
    return FeatureSet(
        clip_id=tuple(f"clip{i}" for i in range(count)),
        features=features.astype(np.float32),
        score=raw * difficulty,
        scale=difficulty,
        offset=np.zeros(count),
        difficulty=difficulty,
        category=("dive",) * count,
        key=tuple((float(d),) for d in difficulty),
    )
