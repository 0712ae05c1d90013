"""Views: their names, the frames they share, and how they are cut out of them."""

from __future__ import annotations

import numpy as np
import pytest

from aqa_pipeline.media.views import PLAIN, View, ViewSet, cut_view, shifted_union, views_of


@pytest.mark.parametrize(
    ("kind", "shift_frames", "names"),
    [
        ("none", 3, ["plain"]),
        ("flip", 3, ["plain", "flip"]),
        ("full", 0, ["plain", "flip"]),
        (
            "full",
            1,
            ["plain", "flip", "shift-1", "shift-1-flip", "shift+1", "shift+1-flip"],
        ),
    ],
)
def test_view_sets(kind: ViewSet, shift_frames: int, names: list[str]) -> None:
    assert [view.name for view in views_of(kind, shift_frames=shift_frames)] == names


def test_the_published_augmentation_has_14_views() -> None:
    views = views_of("full", shift_frames=3)
    assert len({view.name for view in views}) == len(views) == 14
    assert views[0] == PLAIN


def test_a_view_is_the_shifted_window_mirrored_left_to_right() -> None:
    positions = np.array([2, 5, 8])
    union = shifted_union(positions, (-1, 0, 2))
    assert union.tolist() == [1, 2, 4, 5, 7, 8, 10]
    # Frame p, column c holds 10 p + c.
    frames = (10 * union[:, None, None, None] + np.arange(4)[None, None, :, None]).astype(np.uint8)
    shifted = cut_view(frames, View(shift=2), positions=positions, union=union)
    assert shifted[:, 0, 0, 0].tolist() == [40, 70, 100]
    mirrored = cut_view(frames, View(shift=-1, flip=True), positions=positions, union=union)
    assert mirrored[0, 0, :, 0].tolist() == [13, 12, 11, 10]
    assert mirrored.flags.c_contiguous


def test_a_window_without_gaps_is_not_copied_and_every_other_one_is_right() -> None:
    rng = np.random.default_rng(1)
    for stride, shifts in ((1, (0,)), (1, (-3, 0, 2)), (2, (0,)), (2, (-1, 0)), (3, (-3, 1))):
        positions = np.arange(4, 4 + 6 * stride, stride)
        union = shifted_union(positions, shifts)
        frames = rng.integers(0, 256, (len(union), 5, 4, 3), dtype=np.uint8)
        for shift in shifts:
            rows = np.searchsorted(union, positions + shift)
            for flip in (False, True):
                found = cut_view(frames, View(shift, flip), positions=positions, union=union)
                expected = frames[rows][:, :, ::-1] if flip else frames[rows]
                assert np.array_equal(found, expected), (stride, shift, flip)
                assert found.flags.c_contiguous
                is_part = not flip and rows[-1] - rows[0] == len(rows) - 1
                assert np.shares_memory(found, frames) == is_part, (stride, shift, flip)
