"""From a manifest and its feature cache to what stage two works on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from aqa_pipeline.cached_clips import request_clips
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.labels import LabelScale
from aqa_pipeline.datasets.manifest import Manifest, exemplar_keys
from aqa_pipeline.datasets.parts import Part
from aqa_pipeline.errors import DataError
from aqa_pipeline.feature_cache import FeatureCache


@dataclass(frozen=True, eq=False)
class SplitClips:
    """The two sides of one part."""

    train: FeatureSet
    test: FeatureSet
    labels: LabelScale


def load_split(
    manifest: Manifest, cache: FeatureCache, part: Part, *, published_ranges: bool = False
) -> SplitClips:
    """Features, scores and labels of the training and test clips of a part.

    Raises
    ------
    DataError
        If one side of the split is empty.
    CacheError
        If features are missing.
    """
    train, test = part.rows(manifest, "train"), part.rows(manifest, "test")
    for name, side in (("train", train), ("test", test)):
        if side.empty:
            which = "" if part.category is None else f" of category {part.category!r}"
            raise DataError(f"{manifest.path}: no clip{which} has {part.split_column} = {name}")
    labels = LabelScale.of(
        manifest.protocol,
        train_scores=train["score"].to_numpy(dtype=float),
        train_categories=train["category"].tolist(),
        published_ranges=published_ranges,
    )
    features = load_features(manifest, cache, [*train["clip_id"], *test["clip_id"]])
    return SplitClips(
        train=dataclasses.replace(
            feature_set(train, features[: len(train)], manifest, labels),
            video=videos_apart(train["video"].tolist(), test["video"].tolist()),
        ),
        test=feature_set(test, features[len(train) :], manifest, labels),
        labels=labels,
    )


def videos_apart(train: Sequence[str], test: Sequence[str]) -> npt.NDArray[np.int64] | None:
    """Number of each training clip's video, if videos are what the split was made by.

    None where a training video has test clips too, or every clip has a video of its own.
    """
    names = sorted(set(train))
    if not set(train).isdisjoint(test) or not 1 < len(names) < len(train):
        return None
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[name] for name in train], dtype=np.int64)


def load_features(
    manifest: Manifest, cache: FeatureCache, clip_ids: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Plain-view features of the given clips, shape=(n, snippets, dim).

    Raises
    ------
    CacheError
        If features are missing.
    """
    request = request_clips(manifest, cache, clip_ids)
    absent = set(clip_ids) - set(request.clip_ids)
    if absent:
        cache.raise_missing(sorted(absent), asked=len(clip_ids))
    return cache.load(request).values[:, 0]


def feature_set(
    rows: pd.DataFrame,
    features: npt.NDArray[np.float32],
    manifest: Manifest,
    labels: LabelScale,
) -> FeatureSet:
    """Rows of a manifest with their features.

    Parameters
    ----------
    rows : DataFrame
    features : ndarray of float32, shape=(len(rows), snippets, dim)
    manifest : Manifest
        Its protocol names the exemplar key.
    labels : LabelScale
    """
    difficulty = rows["difficulty"].to_numpy(dtype=float)
    categories = rows["category"].tolist()
    scale, offset = labels.scale_and_offset(difficulty=difficulty, categories=categories)
    return FeatureSet(
        clip_id=tuple(rows["clip_id"]),
        features=features,
        score=rows["score"].to_numpy(dtype=float),
        scale=scale,
        offset=offset,
        difficulty=difficulty,
        category=tuple(categories),
        key=tuple(exemplar_keys(rows, manifest.protocol.exemplar_key)),
        judges=_judges(rows),
    )


def _judges(rows: pd.DataFrame) -> npt.NDArray[np.float64] | None:
    """Marks of the columns judge_1, judge_2, ... (or rating_1, ...), if all rows have them."""
    for word in ("judge", "rating"):
        numbers = {int(n) for c in rows.columns for n in re.findall(rf"^{word}_([1-9]\d*)$", c)}
        # Free columns are kept as text; an empty cell or a word becomes NaN.
        marks = rows[[f"{word}_{n}" for n in sorted(numbers)]].apply(pd.to_numeric, errors="coerce")
        # A copy: pandas shows its own columns read-only, and torch wants to own what it reads.
        values: npt.NDArray[np.float64] = marks.to_numpy(dtype=float, copy=True)
        if values.size and np.isfinite(values).all():
            return values
    return None
