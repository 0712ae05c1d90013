"""Views: their names, the frames they share, and how they are cut out of them."""

from __future__ import annotations

import numpy as np
import pytest

from aqa_pipeline.views import PLAIN, View, ViewSet, cut_view, shifted_union, views_of


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
