"""The loader of stage two: a manifest and its feature cache become feature sets.

Clips are matched by id, window and, where the video can be reached, by its content. A
cache that was copied to a machine without the videos is used as it is, and so are
features that were imported: nobody knows which file they come from.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from aqa_pipeline.cache.fingerprint import fingerprint_of
from aqa_pipeline.cache.reader import ClipQuery, FeatureCache
from aqa_pipeline.config import Protocol
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.labels import LabelScale
from aqa_pipeline.datasets.locate import LocatedClip, locate, video_index_folder
from aqa_pipeline.datasets.manifest import Manifest, as_manifest, exemplar_keys
from aqa_pipeline.datasets.parts import Part, only_part
from aqa_pipeline.errors import CacheError, DataError
from aqa_pipeline.media.views import PLAIN
from aqa_pipeline.project import Project

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SplitClips:
    """The two sides of one part.

    Attributes
    ----------
    train, test : FeatureSet
    labels : LabelScale
        From score to label, by the training clips.
    """

    train: FeatureSet
    test: FeatureSet
    labels: LabelScale


def load_split(
    manifest: Manifest | str | Path,
    cache: FeatureCache | str | Path,
    part: Part | None = None,
    *,
    published_ranges: bool = False,
) -> SplitClips:
    """Features, scores and labels of the training and test clips of a part.

    Parameters
    ----------
    manifest : Manifest, str or Path
    cache : FeatureCache, str or Path
        Opened, or its folder.
    part : Part or None
        Category or fold; None: the data set's only part.
    published_ranges : bool
        Labels by the published score ranges, not by those of the training clips.

    Returns
    -------
    SplitClips
        ``train`` and ``test``, each with features of shape (N, snippets, dim) and scores in
        points; and ``labels``.

    Raises
    ------
    DataError
        If the manifest cannot be used, or one side of the split is empty.
    CacheError
        If there is no such cache, or features are missing.
    UsageError
        If the data set has several parts and none is named.
    """
    manifest, cache = as_manifest(manifest), as_cache(cache)
    part = part or only_part(manifest)
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


def load_clips(
    manifest: Manifest, cache: FeatureCache, rows: pd.DataFrame, labels: LabelScale
) -> FeatureSet:
    """Rows of a manifest with their plain-view features.

    Raises
    ------
    CacheError
        If features are missing.
    """
    features = load_features(manifest, cache, rows["clip_id"].tolist())
    return feature_set(rows, features, manifest, labels)


def load_features(
    manifest: Manifest, cache: FeatureCache, clip_ids: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Plain-view features of the given clips, shape=(n, snippets, dim).

    Raises
    ------
    CacheError
        If features are missing.
    """
    return cache.load(request_clips(manifest, cache, clip_ids)).values[:, 0]


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


def request_clips(
    manifest: Manifest, cache: FeatureCache, clip_ids: Sequence[str], *, partial: bool = False
) -> ClipQuery:
    """What to ask a cache for.

    Parameters
    ----------
    manifest : Manifest
    cache : FeatureCache
    clip_ids : sequence of str
        Clips of the manifest.
    partial : bool
        Leave out clips without a video of which the cache holds nothing either.

    Returns
    -------
    ClipQuery
        In the order given.

    Raises
    ------
    CacheError
        If such clips are not to be left out.
    """
    request = cache.stored(clip_ids) if cache.is_imported else _located(manifest, cache, clip_ids)
    absent = set(clip_ids) - set(request.clip_ids)
    if absent and not partial:
        raise cache.missing(sorted(absent), asked=len(clip_ids))
    row = {name: i for i, name in enumerate(request.clip_ids)}
    return request.take(np.array([row[name] for name in clip_ids if name in row], dtype=np.int64))


def _located(manifest: Manifest, cache: FeatureCache, clip_ids: Sequence[str]) -> ClipQuery:
    index_folder = video_index_folder(cache.folder.parent.parent)
    located, missing = locate(manifest, index_folder=index_folder)
    parts = [wanted(located)]
    unreachable = {item.clip.clip_id for item in missing} & set(clip_ids)
    if unreachable:
        parts.append(cache.stored(sorted(unreachable)))
        if len(parts[1]):
            _log.warning(
                "%d of %d videos cannot be reached; their cached features are used unchecked",
                len(parts[1]),
                len(clip_ids),
            )
    parts = [part for part in parts if len(part)] or parts[:1]
    return ClipQuery(
        clip_ids=[name for part in parts for name in part.clip_ids],
        source_ids=[source for part in parts for source in part.source_ids],
        frame_index=np.concatenate([part.frame_index for part in parts]),
    )


def load_views(
    manifest: Manifest, cache: FeatureCache, clip_ids: Sequence[str], *, averaged: bool
) -> npt.NDArray[np.float32]:
    """The clips in all views that are cached of every one of them, the plain one first.

    Parameters
    ----------
    manifest : Manifest
    cache : FeatureCache
    clip_ids : sequence of str
    averaged : bool
        Only the mean over the snippets: all that the aggregation ``mean`` looks at.

    Returns
    -------
    ndarray of float32, shape=(n, views, snippets or 1, dim)

    Raises
    ------
    CacheError
        If features are missing, or there is no view beside the plain one.
    """
    request = request_clips(manifest, cache, clip_ids)
    names = sorted({name for segment in cache.segments for name in segment.view_names})
    others = [name for name in names if name != PLAIN.name]
    there = cache.cached(request, view_names=others)  # (n, others)
    used = [PLAIN.name, *(name for i, name in enumerate(others) if there[:, i].all())]
    if len(used) == 1:
        raise CacheError(
            f"{cache.folder}: no augmented view of all {len(clip_ids)} training clips is cached; "
            f"type `aqa extract --dataset {manifest.name} --views flip` (or full) first"
        )
    views: npt.NDArray[np.float32] | None = None
    for position, name in enumerate(used):  # one by one: a view at full length may be large
        values = cache.load(request, view_names=(name,)).values[:, 0]
        if averaged:
            values = values.mean(axis=1, keepdims=True)
        if views is None:
            views = np.empty((len(values), len(used), *values.shape[1:]), dtype=np.float32)
        views[:, position] = values
    assert views is not None
    return views


def wanted(located: Sequence[LocatedClip]) -> ClipQuery:
    """The clips as the cache is asked for them."""
    window = len(located[0].positions) if located else 0
    return ClipQuery(
        clip_ids=[item.clip.clip_id for item in located],
        source_ids=[item.source_id for item in located],
        frame_index=np.array([item.positions for item in located], dtype=np.int64).reshape(
            len(located), window
        ),
    )


def open_cache(
    manifest: Manifest | str | Path,
    *,
    cache_root: str | Path | None = None,
    folder: str | Path | None = None,
) -> FeatureCache:
    """The cache of a manifest's features.

    Parameters
    ----------
    manifest : Manifest, str or Path
    cache_root : str, Path or None
        Holds a folder per data set; None: ``cache/`` of the project.
    folder : str, Path or None
        The cache itself, where several fit the protocol.

    Returns
    -------
    FeatureCache

    Raises
    ------
    DataError
        If the manifest cannot be used.
    CacheError
        As :func:`find_cache` and :meth:`FeatureCache.open`.
    """
    if folder is not None:
        return FeatureCache.open(folder)
    manifest = as_manifest(manifest)
    root = Project.find().cache if cache_root is None else Path(cache_root)
    return find_cache(root / manifest.name, manifest.protocol)


def as_cache(cache: FeatureCache | str | Path) -> FeatureCache:
    """The cache itself, or opened from its folder; errors as :meth:`FeatureCache.open`."""
    return cache if isinstance(cache, FeatureCache) else FeatureCache.open(cache)


def find_cache(dataset_folder: Path, protocol: Protocol) -> FeatureCache:
    """The one cache of a data set that was made with this protocol.

    Raises
    ------
    CacheError
        There is none, or several (made with different weights); the message says what
        each of them is.
    """
    folders = sorted(path.parent for path in dataset_folder.glob("*/fingerprint.json"))
    opened = [FeatureCache.open(folder) for folder in folders]
    differing: dict[Path, list[str]] = {}
    for cache in opened:
        own = cache.identity.fingerprint
        if cache.is_imported:
            differing[cache.folder] = []  # whoever imported it knows how it was made
            continue
        expected = fingerprint_of(protocol, weights_sha256=own.weights_sha256)
        differing[cache.folder] = [
            line
            for line in expected.differences(own)
            if not line.startswith(("backbone", "precision", "arithmetic"))
        ]
    fitting = [cache for cache in opened if not differing[cache.folder]]
    if len(fitting) == 1:
        return fitting[0]
    extract = f"type `aqa extract --dataset {dataset_folder.name}`"
    if fitting:
        choices = " or ".join(
            f"--cache {cache.folder} (weights {cache.identity.fingerprint.weights_sha256[:12]})"
            for cache in fitting
        )
        raise CacheError(
            f"{dataset_folder}: {len(fitting)} caches fit the protocol; choose one: {choices}"
        )
    if not opened:
        raise CacheError(f"{dataset_folder}: no features yet; {extract}")
    reasons = "; ".join(f"{folder.name}: {', '.join(d)}" for folder, d in differing.items())
    raise CacheError(
        f"{dataset_folder}: no cache was made with the protocol beside the manifest "
        f"(here = protocol, there = cache: {reasons}); {extract}"
    )
