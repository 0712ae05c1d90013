"""From a manifest and its feature cache to what stage two works on.

Features are matched by clip, window and, where the video can be reached, by its content.
A cache that was copied to a machine without the videos is used as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from aqa_pipeline.errors import DataError
from aqa_pipeline.feature_cache import FeatureCache, WantedClips
from aqa_pipeline.featureset import FeatureSet, Key
from aqa_pipeline.labels import LabelScale
from aqa_pipeline.manifest import Manifest
from aqa_pipeline.plan import locate, video_index_folder, wanted

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SplitClips:
    """The two sides of one split.

    Attributes
    ----------
    train, test : FeatureSet
    labels : LabelScale
    extra : DataFrame
        The manifest's rows of the test clips, in the order of ``test``.
    """

    train: FeatureSet
    test: FeatureSet
    labels: LabelScale
    test_rows: pd.DataFrame


def load_split(manifest: Manifest, cache: FeatureCache) -> SplitClips:
    """Features, scores and labels of a manifest's training and test clips.

    Raises
    ------
    DataError
        If the manifest has no split, or one side of it is empty.
    CacheError
        If features are missing.
    """
    rows = manifest.clips
    sides = {name: rows[rows["split"] == name] for name in ("train", "test")}
    empty = [name for name, side in sides.items() if side.empty]
    if empty:
        raise DataError(
            f"{manifest.path}: no clip has split = {' or '.join(empty)}; "
            f"`aqa manifest split {manifest.name}` makes a seeded split"
        )
    labels = LabelScale.of(
        manifest.protocol,
        train_scores=sides["train"]["score"].to_numpy(dtype=float),
        train_categories=sides["train"]["category"].tolist(),
    )
    used = pd.concat(list(sides.values()))
    features = load_features(manifest, cache, used["clip_id"].tolist())
    count = len(sides["train"])
    return SplitClips(
        train=feature_set(sides["train"], features[:count], manifest, labels),
        test=feature_set(sides["test"], features[count:], manifest, labels),
        labels=labels,
        test_rows=sides["test"],
    )


def load_features(
    manifest: Manifest, cache: FeatureCache, clip_ids: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Plain-view features of the given clips, shape=(n, snippets, dim).

    Raises
    ------
    CacheError
        If features are missing.
    """
    index_folder = video_index_folder(cache.folder.parent.parent)
    located, missing = locate(manifest, index_folder=index_folder)
    request = _as_asked(wanted(located), clip_ids)
    unreachable = {item.clip.clip_id for item in missing} & set(clip_ids)
    if unreachable:
        stored = cache.stored(sorted(unreachable))
        if len(stored):
            _log.warning(
                "%d of %d videos cannot be reached; their cached features are used unchecked",
                len(stored),
                len(clip_ids),
            )
        request = _as_asked(_joined(request, stored), clip_ids)
    absent = set(clip_ids) - set(request.clip_ids)
    if absent:
        cache.raise_missing(sorted(absent), asked=len(clip_ids))
    return cache.load(request).values[:, 0]


def _as_asked(request: WantedClips, clip_ids: Sequence[str]) -> WantedClips:
    """The request's clips among ``clip_ids``, in their order."""
    row = {name: i for i, name in enumerate(request.clip_ids)}
    index = [row[name] for name in clip_ids if name in row]
    return WantedClips(
        clip_ids=[request.clip_ids[i] for i in index],
        source_ids=[request.source_ids[i] for i in index],
        frame_index=request.frame_index[index],
    )


def _joined(a: WantedClips, b: WantedClips) -> WantedClips:
    if not len(a) or not len(b):
        return b if len(b) else a
    return WantedClips(
        clip_ids=[*a.clip_ids, *b.clip_ids],
        source_ids=[*a.source_ids, *b.source_ids],
        frame_index=np.concatenate([a.frame_index, b.frame_index]),
    )


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
        key=exemplar_keys(rows, manifest.protocol.exemplar_key),
    )


def exemplar_keys(rows: pd.DataFrame, columns: Sequence[str]) -> tuple[Key, ...]:
    """Values of the exemplar key's columns, one tuple a row; numbers rounded to 1e-6.

    Difficulties such as 3.1 may have gone through arithmetic on their way into a
    manifest, and must still be equal to each other.
    """
    if not columns:
        return ((),) * len(rows)
    values = [
        [round(float(v), 6) for v in rows[column]]
        if pd.api.types.is_numeric_dtype(rows[column])
        else [str(v) for v in rows[column]]
        for column in columns
    ]
    return tuple(zip(*values, strict=True))
