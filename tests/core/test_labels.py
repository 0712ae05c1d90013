from __future__ import annotations

import numpy as np
import pytest

from aqa_pipeline.config import Protocol
from aqa_pipeline.core.labels import LabelScale
from aqa_pipeline.errors import DataError

AQA_7 = Protocol(
    "aqa7",
    label_transform="range",
    label_ranges={"diving": (21.6, 102.6), "gym_vault": (12.3, 16.87)},
)


def scale_of(protocol: Protocol, *, published_ranges: bool = False) -> LabelScale:
    return LabelScale.of(
        protocol,
        train_scores=[30.0, 90.0, 13.0, 15.0, 16.0],
        train_categories=["diving", "diving", "gym_vault", "gym_vault", "gym_vault"],
        published_ranges=published_ranges,
    )


def labels_of(scale: LabelScale, scores: list[float], categories: list[str]) -> list[float]:
    factor, offset = scale.scale_and_offset(difficulty=[2.0] * len(scores), categories=categories)
    return [(s - o) / f for s, f, o in zip(scores, factor, offset, strict=True)]


def test_without_a_transform_the_label_is_the_score() -> None:
    scale = scale_of(Protocol("own"))
    assert labels_of(scale, [30.0, 7.0], ["a", "b"]) == [30.0, 7.0]


def test_a_missing_difficulty_does_not_matter_without_a_transform() -> None:
    factor, offset = LabelScale("none").scale_and_offset(
        difficulty=[float("nan")], categories=["a"]
    )
    assert (factor.tolist(), offset.tolist()) == ([1.0], [0.0])


def test_raw_labels_are_divided_by_the_difficulty() -> None:
    scale = scale_of(Protocol("mtl", label_transform="raw"))
    factor, offset = scale.scale_and_offset(difficulty=[3.2, 2.0], categories=["a", "a"])
    np.testing.assert_allclose((np.array([80.0, 50.0]) - offset) / factor, [25.0, 25.0])


def test_ranges_are_those_of_the_training_scores_unless_the_published_are_asked_for() -> None:
    own = scale_of(AQA_7)
    assert own.ranges == {"diving": (30.0, 90.0), "gym_vault": (13.0, 16.0)}
    assert labels_of(own, [30, 90, 60, 13], ["diving"] * 3 + ["gym_vault"]) == [0, 100, 50, 0]
    published = scale_of(AQA_7, published_ranges=True)
    assert published.ranges == AQA_7.label_ranges
    assert labels_of(published, [21.6, 102.6], ["diving"] * 2) == pytest.approx([0, 100])


def test_a_score_outside_the_training_range_keeps_its_distance() -> None:
    assert labels_of(scale_of(AQA_7), [96.0, 24.0], ["diving"] * 2) == pytest.approx([110, -10])


def test_labels_that_cannot_be() -> None:
    with pytest.raises(DataError, match="no score range for category 'ski'; there are 'diving'"):
        scale_of(AQA_7).scale_and_offset(difficulty=[1.0], categories=["ski"])
    with pytest.raises(DataError, match="category 'ski': all 2 training scores are 5"):
        LabelScale.of(AQA_7, train_scores=[5, 5], train_categories=["ski", "ski"])
    with pytest.raises(DataError, match="the protocol of own publishes no score ranges"):
        scale_of(Protocol("own", label_transform="range"), published_ranges=True)


def test_no_clip_has_no_label() -> None:
    factor, offset = scale_of(AQA_7).scale_and_offset(difficulty=[], categories=[])
    assert factor.shape == offset.shape == (0,)
