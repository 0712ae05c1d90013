"""Labels of a head: from the published score, and back.

Conventions
-----------
score
    Final, as published, in points.
label
    What the head learns: the score itself, the raw score (score / difficulty), or the
    score mapped to 0..100 within its category.

Source: Sec. 3.1 ("we only need to predict the action quality score"); the fixed ranges
of AQA-7 are the published program's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aqa_pipeline.config import LabelTransform, Protocol
from aqa_pipeline.errors import DataError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelScale:
    """The label transform of a protocol and its inverse.

    Attributes
    ----------
    transform : {"none", "raw", "range"}
    ranges : dict of str to (float, float)
        For ``range``: category -> (lowest, highest score), in points.
    """

    transform: LabelTransform
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        protocol: Protocol,
        *,
        train_scores: npt.ArrayLike,
        train_categories: Sequence[str],
        published_ranges: bool = False,
    ) -> LabelScale:
        """The scale of a protocol.

        Ranges are taken from the training scores, since the published ones were read from
        training and test together; ``published_ranges`` takes those all the same.

        Raises
        ------
        DataError
            If the scores of a category are all equal, or no range is published.
        """
        if protocol.label_transform != "range":
            return cls(protocol.label_transform)
        if published_ranges:
            if not protocol.label_ranges:
                raise DataError(
                    f"the protocol of {protocol.name} publishes no score ranges; write them "
                    "under label_ranges, or let them be taken from the training scores"
                )
            return cls("range", dict(protocol.label_ranges))
        scores = np.asarray(train_scores, dtype=np.float64)
        ranges = {}
        for category in sorted(set(train_categories)):
            own = scores[[c == category for c in train_categories]]
            ranges[category] = (float(own.min()), float(own.max()))
            if not ranges[category][1] > ranges[category][0]:
                raise DataError(
                    f"category {category!r}: all {len(own)} training scores are {own[0]:g}; "
                    'label_transform = "range" needs at least two different ones'
                )
        return cls("range", ranges)

    def scale_and_offset(
        self, *, difficulty: npt.ArrayLike, categories: Sequence[str]
    ) -> tuple[FloatArray, FloatArray]:
        """The transform of each clip, as ``score = offset + scale * label``.

        Parameters
        ----------
        difficulty : array_like, shape=(N,)
        categories : sequence of str, length N

        Returns
        -------
        scale, offset : ndarray of float64, shape=(N,)

        Raises
        ------
        DataError
            If a category has no range.
        """
        if self.transform == "range":
            unknown = sorted(set(categories) - set(self.ranges))
            if unknown:
                raise DataError(
                    f"no score range for category {', '.join(map(repr, unknown))}; "
                    f"there are {', '.join(map(repr, self.ranges))}"
                )
            low, high = np.array([self.ranges[c] for c in categories]).reshape(-1, 2).T
            return (high - low) / 100.0, low
        scale = np.asarray(difficulty, dtype=np.float64)
        if self.transform == "none":
            scale = np.ones_like(scale)
        return scale, np.zeros_like(scale)
