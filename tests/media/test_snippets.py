from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aqa_pipeline.config import Protocol
from aqa_pipeline.errors import DataError
from aqa_pipeline.media.snippets import (
    WindowRule,
    clamp_positions,
    snippet_index,
    snippet_starts,
    window_positions,
)

PUBLISHED = [0, 10, 20, 30, 40, 50, 60, 70, 80, 86]


def test_starts_of_the_published_window() -> None:
    starts = snippet_starts(window_frames=103, snippet_frames=16, num_snippets=10)
    assert starts == PUBLISHED == list(Protocol("any").snippet_starts)


@pytest.mark.parametrize(
    ("window", "count", "step"),
    [pytest.param(160, 10, 16, id="JIGSAWS"), pytest.param(96, 9, 10, id="FineDiving")],
)
def test_starts_of_other_published_windows(window: int, count: int, step: int) -> None:
    starts = snippet_starts(window_frames=window, snippet_frames=16, num_snippets=count)
    assert starts == list(range(0, count * step, step))


def test_published_snippets_never_use_the_last_frame() -> None:
    frames = snippet_index(PUBLISHED, snippet_frames=16)
    assert frames.shape == (10, 16)
    assert set(range(103)) - set(frames.ravel().tolist()) == {102}


@given(window=st.integers(1, 400), length=st.integers(1, 64), count=st.integers(1, 40))
def test_snippets_cover_any_window_from_end_to_end(window: int, length: int, count: int) -> None:
    assume(length <= window and (window, length, count) != (103, 16, 10))
    starts = snippet_starts(window_frames=window, snippet_frames=length, num_snippets=count)
    frames = snippet_index(starts, snippet_frames=length)
    assert len(starts) == count
    assert starts == sorted(starts)
    assert frames[0, 0] == 0
    assert frames.max() == (window - 1 if count > 1 else length - 1)
    assert (np.diff(starts) <= -(-(window - length) // max(count - 1, 1))).all(), "evenly"


def test_snippet_index_by_hand() -> None:
    assert snippet_index([0, 3], snippet_frames=2).tolist() == [[0, 1], [3, 4]]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("last", [16, 17, 18, 19]), ("first", [10, 11, 12, 13]), ("even", [10, 13, 16, 19])],
)
def test_window_rules_by_hand(rule: WindowRule, expected: list[int]) -> None:
    window = window_positions(rule, window_frames=4, start_frame=10, end_frame=20)
    assert window.tolist() == expected
    assert window.dtype == np.int64


def test_the_last_window_ignores_the_start_and_may_leave_the_video() -> None:
    for start in (0, 50, 99):
        window = window_positions("last", window_frames=103, start_frame=start, end_frame=100)
        assert (window[0], window[-1]) == (-3, 99)


@given(start=st.integers(0, 10**6), clip=st.integers(1, 5000), window=st.integers(2, 300))
def test_even_windows_are_exact_fractions_rounded_down(start: int, clip: int, window: int) -> None:
    found = window_positions(
        "even", window_frames=window, start_frame=start, end_frame=start + clip
    )
    expected = [start + floor(Fraction(i * (clip - 1), window - 1)) for i in range(window)]
    assert found.tolist() == expected
    assert (found[0], found[-1]) == (start, start + clip - 1)


def test_an_even_window_of_one_frame_is_the_first() -> None:
    assert window_positions("even", window_frames=1, start_frame=5, end_frame=9).tolist() == [5]


def test_clamping_by_hand() -> None:
    frames, moved = clamp_positions(np.arange(-2, 4), video_frames=3)
    assert frames.tolist() == [0, 0, 0, 1, 2, 2]
    assert moved == 3


@given(first=st.integers(-50, 50), length=st.integers(1, 60), video=st.integers(1, 60))
def test_clamping_moves_only_what_lies_outside(first: int, length: int, video: int) -> None:
    window = np.arange(first, first + length)
    frames, moved = clamp_positions(window, video_frames=video)
    inside = (window >= 0) & (window < video)
    np.testing.assert_array_equal(frames[inside], window[inside])
    assert set(frames[~inside].tolist()) <= {0, video - 1}
    assert moved == np.count_nonzero(~inside)


def test_windows_that_cannot_be() -> None:
    with pytest.raises(DataError, match="start_frame 7 is not before end_frame 7"):
        window_positions("last", window_frames=4, start_frame=7, end_frame=7)
    with pytest.raises(DataError, match="at least 1 frame, not 0"):
        window_positions("last", window_frames=0, start_frame=0, end_frame=7)
    with pytest.raises(DataError, match="'middle'; it is one of last, first, even"):
        window_positions("middle", window_frames=4, start_frame=0, end_frame=7)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the video has no frame"):
        clamp_positions(np.arange(3), video_frames=0)


def test_snippets_that_cannot_be() -> None:
    with pytest.raises(DataError, match="a snippet of 16 frames does not fit in a window of 15"):
        snippet_starts(window_frames=15, snippet_frames=16, num_snippets=2)
    with pytest.raises(DataError, match="at least one snippet of one frame, not 0 of 16"):
        snippet_starts(window_frames=103, snippet_frames=16, num_snippets=0)
