"""Which clips of a manifest are in the cache already, and which are still to do.

Nothing is decoded here: a clip is identified by its id, its video's identity (size and
content hash, remembered between runs) and the positions of its window.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aqa_pipeline.config import PIXEL_PRESETS, Protocol
from aqa_pipeline.datasets.locate import LocatedClip
from aqa_pipeline.errors import CacheError
from aqa_pipeline.feature_cache import FeatureCache, WantedClips
from aqa_pipeline.fingerprint import Fingerprint

BACKBONE = "i3d"


BACKBONE_DIM = 1024  #: as in :mod:`aqa_pipeline.backbone.i3d`, which would import torch


def fingerprint_of(
    protocol: Protocol, *, weights_sha256: str, precision: str = "float32"
) -> Fingerprint:
    """The fingerprint of the features a protocol and a backbone give."""
    return Fingerprint(
        backbone=BACKBONE,
        weights_sha256=weights_sha256,
        pixels=PIXEL_PRESETS[protocol.pixels],
        window_rule=protocol.window_rule,
        window_frames=protocol.window_frames,
        snippet_frames=protocol.snippet_frames,
        snippet_starts=protocol.snippet_starts,
        precision=precision,
    )


def wanted(located: Sequence[LocatedClip]) -> WantedClips:
    """The clips as the cache is asked for them."""
    window = len(located[0].positions) if located else 0
    return WantedClips(
        clip_ids=[item.clip.clip_id for item in located],
        source_ids=[item.source_id for item in located],
        frame_index=np.array([item.positions for item in located], dtype=np.int64).reshape(
            len(located), window
        ),
    )


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
