"""Which features of a cache belong to the clips of a manifest.

Clips are matched by id, window and, where the video can be reached, by its content. A
cache that was copied to a machine without the videos is used as it is, and so are
features that were imported: nobody knows which file they come from.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from aqa_pipeline.datasets.locate import locate, video_index_folder
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.feature_cache import FeatureCache, WantedClips
from aqa_pipeline.plan import wanted

_log = logging.getLogger(__name__)


def request_clips(manifest: Manifest, cache: FeatureCache, clip_ids: Sequence[str]) -> WantedClips:
    """What to ask a cache for.

    Parameters
    ----------
    manifest : Manifest
    cache : FeatureCache
    clip_ids : sequence of str
        Clips of the manifest.

    Returns
    -------
    WantedClips
        In the order given. Left out are clips without a video of which the cache holds
        nothing either.
    """
    if cache.is_imported:
        return cache.stored(clip_ids)
    index_folder = video_index_folder(cache.folder.parent.parent)
    located, missing = locate(manifest, index_folder=index_folder)
    request = _as_asked(wanted(located), clip_ids)
    unreachable = {item.clip.clip_id for item in missing} & set(clip_ids)
    if not unreachable:
        return request
    stored = cache.stored(sorted(unreachable))
    if len(stored):
        _log.warning(
            "%d of %d videos cannot be reached; their cached features are used unchecked",
            len(stored),
            len(clip_ids),
        )
    return _as_asked(_joined(request, stored), clip_ids)


def _as_asked(request: WantedClips, clip_ids: Sequence[str]) -> WantedClips:
    """The request's clips among ``clip_ids``, in their order."""
    row = {name: i for i, name in enumerate(request.clip_ids)}
    return request.take(np.array([row[name] for name in clip_ids if name in row], dtype=np.int64))


def _joined(a: WantedClips, b: WantedClips) -> WantedClips:
    if not len(a) or not len(b):
        return b if len(b) else a
    return WantedClips(
        clip_ids=[*a.clip_ids, *b.clip_ids],
        source_ids=[*a.source_ids, *b.source_ids],
        frame_index=np.concatenate([a.frame_index, b.frame_index]),
    )
