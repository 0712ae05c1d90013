"""Clips with their features and labels in memory, as stage two sees them.

Plain numpy; where the features came from (I3D, somebody else's network, poses) is
forgotten here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from aqa_pipeline.errors import DataError

Key = tuple[str | float, ...]
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """N clips ready for a head.

    Attributes
    ----------
    clip_id : tuple of str
    features : ndarray of float32, shape=(N, S, D)
        S snippet features of dimension D a clip.
    score : ndarray of float64, shape=(N,)
        Final, in points; NaN for a clip that is to be scored.
    scale, offset : ndarray of float64, shape=(N,)
        What the head learns is the label: ``score = offset + scale * label``; see
        :mod:`aqa_pipeline.core.labels`.
    difficulty : ndarray of float64, shape=(N,)
        NaN where not given.
    category : tuple of str
    key : tuple of tuple
        Values of the exemplar key's columns; clips may be compared when they are equal.
    judges : ndarray of float64, shape=(N, J), or None
        Marks of J judges; None where not every clip has them.
    video : ndarray of int64, shape=(N,), or None
        Number of each clip's video, from 0, where a validation part must hold whole videos
        out; None: every clip goes its own way.
    """

    clip_id: tuple[str, ...]
    features: npt.NDArray[np.float32]
    score: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]
    difficulty: npt.NDArray[np.float64]
    category: tuple[str, ...]
    key: tuple[Key, ...]
    judges: npt.NDArray[np.float64] | None = None
    video: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.features.ndim != 3:
            raise DataError(
                f"features have shape {self.features.shape}; expected (clips, snippets, dim)"
            )
        columns = [getattr(self, name) for name in self.__dataclass_fields__]
        lengths = {len(column) for column in columns if column is not None}
        if len(lengths) != 1:
            raise DataError(f"columns of different lengths: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.clip_id)

    def __repr__(self) -> str:
        count, snippets, dim = self.features.shape
        return f"FeatureSet({count} clips, {snippets} snippets x {dim})"

    @property
    def label(self) -> npt.NDArray[np.float64]:
        """Labels of the scores, shape=(N,), in label points."""
        return (self.score - self.offset) / self.scale

    def to_score(self, label: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Scores of predicted labels of these clips, shape=(..., N), in points."""
        return self.offset + self.scale * label

    def take(self, rows: npt.ArrayLike) -> FeatureSet:
        """The clips at the given positions, in that order."""
        index = np.asarray(rows, dtype=np.int64)
        return FeatureSet(
            clip_id=_pick(self.clip_id, index),
            features=self.features[index],
            score=self.score[index],
            scale=self.scale[index],
            offset=self.offset[index],
            difficulty=self.difficulty[index],
            category=_pick(self.category, index),
            key=_pick(self.key, index),
            judges=None if self.judges is None else self.judges[index],
            video=None if self.video is None else self.video[index],
        )

    @classmethod
    def concat(cls, parts: Sequence[FeatureSet]) -> FeatureSet:
        """All clips of several sets, in order; ``video`` counts within one set and is dropped."""
        names = ("features", "score", "scale", "offset", "difficulty")
        marks = [part.judges for part in parts if part.judges is not None]
        alike = len(marks) == len(parts) and len({own.shape[1] for own in marks}) == 1
        return cls(
            clip_id=tuple(name for part in parts for name in part.clip_id),
            category=tuple(name for part in parts for name in part.category),
            key=tuple(key for part in parts for key in part.key),
            judges=np.concatenate(marks) if alike else None,
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names},
        )

    def distinct(self) -> FeatureSet:
        """The clips in order, the first of each id."""
        first: dict[str, int] = {}
        for row, name in enumerate(self.clip_id):
            first.setdefault(name, row)
        return self if len(first) == len(self) else self.take(list(first.values()))


def _pick(values: Sequence[Item], index: npt.NDArray[np.int64]) -> tuple[Item, ...]:
    return tuple(values[i] for i in index.tolist())
