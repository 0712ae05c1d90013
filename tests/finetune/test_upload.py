"""Frames that are cut on the device: the CPU's cut to the bit, one step ahead."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
import torch

from aqa_pipeline.config import PIXEL_PRESETS
from aqa_pipeline.finetune.draws import ClipView, StepDraw
from aqa_pipeline.finetune.frames import cut
from aqa_pipeline.finetune.upload import Uploads
from aqa_pipeline.media.clip import DecodeTask

CPU = torch.device("cpu")
JITTER, CROP = 3, 5
SHIFTS = (-2, -1, 0, 1, 2)


def task_of(row: int) -> DecodeTask:
    positions = np.array([4, 5, 6, 9, 10, 11, 14]) + row
    return DecodeTask(str(row), None, positions, PIXEL_PRESETS["tiny"], None, False, shifts=SHIFTS)  # type: ignore[arg-type]


TASKS = [task_of(row) for row in range(3)]


def box_of(row: int) -> npt.NDArray[np.uint8]:
    shape = (len(TASKS[row].union), CROP + 2 * JITTER, CROP + 2 * JITTER, 3)
    box: npt.NDArray[np.uint8] = np.random.default_rng(row).integers(0, 256, shape, dtype=np.uint8)
    return box


def draws() -> list[StepDraw]:
    """Every shift, flip and corner of the crop."""
    views = [
        ClipView(shift, flip, down, right)
        for shift, flip, down, right in product(SHIFTS, (False, True), (-3, 0, 3), (-3, 1, 3))
    ]
    thirds = zip(views, views[1:], views[2:], strict=False)
    return [StepDraw(np.array([[0, 1], [1, 2]]), dict(enumerate(three))) for three in thirds]


def test_crop_and_flip_are_the_cut_to_the_bit() -> None:
    steps, boxes = draws(), {row: box_of(row) for row in (0, 1, 2)}
    uploads = Uploads(TASKS, jitter=JITTER, device=CPU)
    ahead = uploads.ahead(steps, iter([boxes] * len(steps)))
    for draw, frames in zip(steps, ahead, strict=True):
        for rows in ([2, 0], [1]):
            found = frames(rows)
            assert found.is_contiguous()
            wanted = [cut(boxes[r], TASKS[r], draw.views[r], jitter=JITTER) for r in rows]
            assert np.array_equal(found.numpy(), np.stack(wanted))
    assert len(steps) == 88


def test_one_step_is_prepared_while_another_is_computed_and_no_more() -> None:
    asked: list[str] = []
    second = threading.Event()

    def boxes(count: int) -> Generator[Mapping[int, npt.NDArray[np.uint8]], None, None]:
        for number in range(count):
            asked.append(threading.current_thread().name)
            if number == 1:
                second.set()
            yield {row: box_of(row) for row in (0, 1, 2)}

    steps = draws()[:4]
    following = boxes(4)
    uploaded = Uploads(TASKS, jitter=JITTER, device=CPU).ahead(steps, following)
    next(uploaded)
    assert second.wait(10), "the second is prepared while the first is in use"
    next(uploaded)
    uploaded.close()
    following.close()
    assert 2 <= len(asked) <= 3
    assert all(name.startswith("upload ahead") for name in asked)


def test_an_error_comes_out_where_the_step_is_taken() -> None:
    def boxes() -> Iterator[Mapping[int, npt.NDArray[np.uint8]]]:
        yield {row: box_of(row) for row in (0, 1, 2)}
        raise ValueError("clip 7 cannot be decoded")

    uploaded = Uploads(TASKS, jitter=JITTER, device=CPU).ahead(draws()[:3], boxes())
    next(uploaded)
    with pytest.raises(ValueError, match="clip 7"):
        next(uploaded)


def test_nothing_to_do() -> None:
    assert list(Uploads(TASKS, jitter=JITTER, device=CPU).ahead([], iter([]))) == []
