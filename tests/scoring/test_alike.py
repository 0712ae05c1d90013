"""Exemplars beside a clip, by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from aqa_pipeline.config import PIXEL_PRESETS
from aqa_pipeline.media.clip import SHOWN_PIXELS, shown_pixels
from aqa_pipeline.scoring.similarity import StandardizedClips, choose
from tests.support.planted import planted_clips


def test_distance_is_the_rms_difference_in_standard_deviations() -> None:
    pool = planted_clips(3)
    features = np.zeros((3, 3, 6), np.float32)
    features[1], features[2] = 2.0, -2.0  # spread sqrt(8 / 3) everywhere
    features[:, :, 5] = 7.0  # a constant one counts as it is
    pool = dataclasses.replace(pool, features=features)
    query = np.zeros((3, 6), np.float32)
    query[:, 5] = 7.0
    expected = np.sqrt(5 / 6 * 4 / (8 / 3))
    (found,) = StandardizedClips(pool.features).distances(query[None])
    np.testing.assert_allclose(found, [0, expected, expected], rtol=1e-6)


def test_the_nearest_and_the_nearest_on_the_other_side_are_shown() -> None:
    pool = dataclasses.replace(planted_clips(5), score=np.array([50.0, 60, 70, 80, 90]))
    distance = np.array([0.9, 0.2, 0.5, 0.4, 0.3])
    assert choose(pool, distance, range(5), 75.0) == [1, 4]
    assert choose(pool, distance, [0, 2, 3], 75.0) == [3, 2]
    assert choose(pool, distance, [3, 4], 75.0) == [4]  # nobody is below
    assert choose(pool, distance, [], 75.0) == []


def test_a_clip_is_no_company_for_itself() -> None:
    pool = dataclasses.replace(planted_clips(2), score=np.array([50.0, 60]))
    assert choose(pool, np.array([0.0, 0.7]), [0, 1], 50.0) == [1]


def test_rounding_does_not_make_a_clip_company_for_itself() -> None:
    pool = dataclasses.replace(planted_clips(4), score=np.array([50.0, 60, 70, 60]))
    pool.features[3] = pool.features[1]  # a copy of the second clip under another name
    spread = pool.features.std(axis=(0, 1))
    query = pool.features[1] + 0.05 * spread
    (distance,) = StandardizedClips(pool.features).distances(query[None])
    assert distance[1] == pytest.approx(0.05, rel=1e-3)
    assert 1 in choose(pool, distance, range(4), 60.0)
    assert sorted(choose(pool, distance, range(4), 60.0, is_exact=False)) == [0, 2]


@pytest.mark.parametrize("name", PIXEL_PRESETS)
def test_shown_pixels_are_the_same_part_of_the_frame(name: str) -> None:
    pixels = PIXEL_PRESETS[name]
    shown = shown_pixels(pixels)
    assert shown.crop == SHOWN_PIXELS
    if pixels.short_side is not None and shown.short_side is not None:
        assert shown.crop / shown.short_side == pixels.crop / pixels.short_side
    else:
        assert shown.size == pixels.size
