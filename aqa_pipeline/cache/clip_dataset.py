"""Cached features as a torch data set, for training one's own heads on them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from aqa_pipeline.cache.load import as_cache, load_features
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.datasets.manifest import Manifest, as_manifest
from aqa_pipeline.datasets.parts import Part, only_part
from aqa_pipeline.errors import DataError, UsageError


class CachedFeatures(Dataset[tuple[Tensor, Tensor]]):
    """Clips of a manifest as pairs of features and score, whole in memory.

    Item i is ``(features, score)``: float32, shape=(S, D), S snippet features of dimension D; and
    float32, shape=(), in points. A ``DataLoader`` makes batches (B, S, D) and (B,) of them.

    Parameters
    ----------
    manifest : Manifest, str or Path
    cache : FeatureCache, str or Path
        Opened, or its folder.
    split : {"train", "test"} or None
        Side of the split; None: every clip of the manifest.
    part : Part or None
        Category or fold; None: the data set's only part.

    Attributes
    ----------
    clip_id : tuple of str, length N
    features : Tensor of float32, shape=(N, S, D)
    score : Tensor of float32, shape=(N,)

    Raises
    ------
    DataError
        If the manifest cannot be used, or that side has no clip.
    CacheError
        If there is no such cache, or features are missing.
    UsageError
        If the split has another name, or the data set several parts and none is named.
    """

    def __init__(
        self,
        manifest: Manifest | str | Path,
        cache: FeatureCache | str | Path,
        *,
        split: Literal["train", "test"] | None = None,
        part: Part | None = None,
    ) -> None:
        manifest = as_manifest(manifest)
        if split is None:
            rows = manifest.clips
        elif split in ("train", "test"):
            rows = (part or only_part(manifest)).rows(manifest, split)
        else:
            raise UsageError(f"split {split!r} is neither train nor test")
        if rows.empty:
            raise DataError(f"{manifest.path}: no clip is on the side {split!r} of the split")
        self.clip_id: tuple[str, ...] = tuple(rows["clip_id"])
        self.features = torch.from_numpy(load_features(manifest, as_cache(cache), self.clip_id))
        self.score = torch.tensor(rows["score"].to_numpy(dtype=float), dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.clip_id)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        return self.features[item], self.score[item]

    def __repr__(self) -> str:
        count, snippets, dim = self.features.shape
        return f"CachedFeatures({count} clips, {snippets} snippets x {dim})"
