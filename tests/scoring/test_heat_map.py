"""Heat on every frame: by hand in time, and painted in the right corner."""

from __future__ import annotations

import numpy as np

from aqa_pipeline.scoring.heat_map import LOWERS, RAISES, frame_heat, painted


def test_heat_changes_linearly_between_the_middles_of_map_positions() -> None:
    cam = np.array([[0.0, 4.0]], np.float32).reshape(1, 2, 1, 1)
    heat = frame_heat(cam, snippet_starts=[0], snippet_frames=8, window_frames=8)
    # Two positions of 4 frames: middles at 1.5 and 5.5.
    np.testing.assert_allclose(heat[:, 0, 0], [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])


def test_overlapping_snippets_are_averaged_and_a_frame_of_none_repeats_the_last() -> None:
    cam = np.array([1.0, -3.0], np.float32).reshape(2, 1, 1, 1)
    heat = frame_heat(cam, snippet_starts=[1, 3], snippet_frames=4, window_frames=9)
    # Frame 0 belongs to none, 1-2 to the first, 3-4 to both, 5-6 to the second, 7-8 to none.
    np.testing.assert_allclose(3 * heat[:, 0, 0], [1, 1, 1, -1, -1, -3, -3, -3, -3], rtol=1e-6)


def test_no_heat_at_all_is_no_division_by_zero() -> None:
    heat = frame_heat(
        np.zeros((1, 1, 2, 2), np.float32), snippet_starts=[0], snippet_frames=4, window_frames=4
    )
    np.testing.assert_array_equal(heat, 0)


def test_each_corner_gets_the_colour_of_its_sign() -> None:
    frames = np.full((1, 64, 64, 3), 128, np.uint8)
    heat = np.zeros((1, 4, 4), np.float32)
    heat[0, 0, 0], heat[0, 3, 3] = 1.0, -1.0
    picture = painted(frames, heat)
    assert picture.shape == frames.shape
    assert np.abs(picture[0, 4, 4].astype(int) - RAISES).max() < 60
    assert np.abs(picture[0, 60, 60].astype(int) - LOWERS).max() < 60
    assert np.abs(picture[0, 32, 32].astype(int) - 128).max() <= 2  # grey where nothing is
