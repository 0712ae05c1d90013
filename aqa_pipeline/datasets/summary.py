"""Contents of a manifest: counts, and a histogram of the scores."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aqa_pipeline.datasets.manifest import Manifest


@dataclass(frozen=True)
class ManifestSummary:
    """Counts over the clips of a manifest.

    Attributes
    ----------
    name : str
        Of the protocol.
    source : str
    num_clips, num_videos : int
    splits : dict of str to dict of str to int
        Split column -> train, test or ``""`` -> clips.
    categories, difficulties : dict of str to dict of str to int
        Value -> side of the first split column -> clips. Difficulties ascend; clips
        without one are not counted.
    score_edges : list of float
        Bounds of the bins of the histogram, in points; one more than bins.
    score_counts : list of int
        Clips of each bin; the last one includes its upper bound.
    """

    name: str
    source: str
    num_clips: int
    num_videos: int
    splits: dict[str, dict[str, int]]
    categories: dict[str, dict[str, int]]
    difficulties: dict[str, dict[str, int]]
    score_edges: list[float]
    score_counts: list[int]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def summarise(manifest: Manifest, *, num_bins: int = 10) -> ManifestSummary:
    """Count the clips of a manifest.

    Parameters
    ----------
    manifest : Manifest
    num_bins : int
        Of the histogram, equally wide from the lowest to the highest score.
    """
    clips = manifest.clips
    side = clips[manifest.split_columns[0]].tolist()
    difficulty = clips["difficulty"].dropna()
    counts, edges = np.histogram(clips["score"].to_numpy(dtype=float), bins=num_bins)
    return ManifestSummary(
        name=manifest.protocol.name,
        source=manifest.protocol.source,
        num_clips=len(clips),
        num_videos=clips["video"].nunique(),
        splits={name: _count(clips[name].tolist()) for name in manifest.split_columns},
        categories=_count_sides(clips["category"].tolist(), side),
        difficulties=_count_sides(
            [f"{value:g}" for value in difficulty.sort_values()],
            [side[i] for i in difficulty.sort_values().index],
        ),
        score_edges=edges.tolist(),
        score_counts=counts.tolist(),
    )


def _count(values: list[str]) -> dict[str, int]:
    return {name: values.count(name) for name in ("train", "test", "") if name in values}


def _count_sides(values: list[str], sides: list[str]) -> dict[str, dict[str, int]]:
    grouped: dict[str, list[str]] = {}
    for value, side in zip(values, sides, strict=True):
        grouped.setdefault(value, []).append(side)
    return {value: _count(own) for value, own in grouped.items()}
