"""Frames for training: what is decoded, cut and kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aqa_pipeline.config import PIXEL_PRESETS, Protocol
from aqa_pipeline.datasets.locate import locate
from aqa_pipeline.errors import ClipError, DataError, UsageError
from aqa_pipeline.finetune.draws import PLAIN_VIEW, ClipView
from aqa_pipeline.finetune.frames import FrameStore, crop_jitter, cut, decode_tasks, used_frames
from aqa_pipeline.media.clip import ClipFrames, DecodeTask, read_clip
from aqa_pipeline.media.decode_pool import DecodePool
from tests.support.small_project import make_project
from tests.support.videos import frame_numbers

SPARSE = Protocol("sparse", window_frames=40, snippet_frames=9, snippet_starts=(3, 8, 31))


def test_only_frames_of_snippets_are_used() -> None:
    used, index = used_frames(SPARSE)
    assert used.tolist() == [*range(3, 17), *range(31, 40)]
    assert used[index].tolist() == [[start + i for i in range(9)] for start in (3, 8, 31)]


def test_the_crop_may_move_as_far_as_the_frame_reaches() -> None:
    assert crop_jitter(PIXEL_PRESETS["kinetics"], None) == 16
    assert crop_jitter(PIXEL_PRESETS["core"], None) == 16
    assert crop_jitter(PIXEL_PRESETS["tiny"], 2) == 2
    with pytest.raises(UsageError, match="leaves 4 pixels between its 64x64 crop and the edge"):
        crop_jitter(PIXEL_PRESETS["tiny"], 5)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[DecodeTask]:
    manifest = make_project(tmp_path_factory.mktemp("clips"), clips_per_video=3)
    located, missing = locate(manifest, index_folder=manifest.path.parent / "index")
    assert not missing
    return decode_tasks(
        located,
        manifest.protocol,
        shift_frames=2,
        jitter=8,
        index_folder=manifest.path.parent / "index",
    )


def test_a_view_is_shifted_cropped_and_mirrored_alike_in_all_frames(
    tasks: list[DecodeTask],
) -> None:
    task = tasks[2]
    box = read_clip(task).frames
    assert box.shape == (9 + 4, 128, 128, 3)
    plain = cut(box, task, PLAIN_VIEW, jitter=8)
    assert frame_numbers(plain) == task.positions.tolist()
    as_extracted = replace(task, pixels=PIXEL_PRESETS["demo"], shifts=(0,))
    assert np.array_equal(plain, read_clip(as_extracted).frames)
    shifted = cut(box, task, ClipView(shift=-2, down=3, right=-8, flip=True), jitter=8)
    rows = np.searchsorted(task.union, task.positions - 2)
    assert np.array_equal(shifted, box[rows, 11 : 11 + 112, 0:112][:, :, ::-1])


def small(task: DecodeTask) -> ClipFrames:
    """A clip of 300 bytes that says which it is."""
    if task.clip_id == "bad":
        raise ClipError("it does not open", stage="open")
    frames = np.full((1, 10, 10, 3), int(task.clip_id), np.uint8)
    return ClipFrames(task.video, frames, task.positions, np.zeros(1), 0, 1)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(workers=2, clip_timeout_seconds=60, decode=small) as pool:
        yield pool


def named(*names: str) -> list[DecodeTask]:
    pixels = PIXEL_PRESETS["tiny"]
    return [
        DecodeTask(name, Path("v.mp4"), np.arange(1), pixels, Path("index"), False)
        for name in names
    ]


NEEDS = [[0, 1], [2, 1], [3], [4, 0, 5], [5, 2]] * 3


@pytest.mark.parametrize(("memory", "kept"), [(0, 0), (650, 2), (10_000, 6)])
def test_every_step_gets_its_clips_whatever_is_kept(
    pool: DecodePool, memory: int, kept: int
) -> None:
    clips = FrameStore(named(*"012345"), pool=pool, memory_bytes=memory)
    for _ in range(2):
        for rows, boxes in zip(NEEDS, clips.follow(NEEDS), strict=True):
            assert {row: int(box[0, 0, 0, 0]) for row, box in boxes.items()} == {r: r for r in rows}
    assert clips.num_kept == kept
    if memory == 10_000:
        assert clips.num_decoded == 6, "kept clips are not decoded again"
    else:
        assert clips.num_decoded > 20


def test_a_step_that_is_left_early_leaves_nothing_behind(pool: DecodePool) -> None:
    clips = FrameStore(named(*"012345"), pool=pool, memory_bytes=0)
    following = clips.follow(NEEDS)
    next(following)
    following.close()
    assert [sorted(boxes) for boxes in clips.follow([[3, 4], [5]])] == [[3, 4], [5]]


def test_a_clip_that_cannot_be_decoded_is_named(pool: DecodePool) -> None:
    clips = FrameStore(named("0", "bad"), pool=pool, memory_bytes=0)
    with pytest.raises(DataError, match="clip bad: it does not open; repair its video or take"):
        list(clips.follow([[0], [1]]))
