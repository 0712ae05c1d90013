"""Every view of the training clips that a cache holds, for augmentation in stage two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aqa_pipeline.cached_clips import request_clips
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.errors import CacheError
from aqa_pipeline.feature_cache import FeatureCache
from aqa_pipeline.media.views import PLAIN


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
    absent = set(clip_ids) - set(request.clip_ids)
    if absent:
        cache.raise_missing(sorted(absent), asked=len(clip_ids))
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
