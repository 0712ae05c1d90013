"""The order of work: groups, what is in flight, failed clips, views."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aqa_pipeline.config import PIXEL_PRESETS
from aqa_pipeline.errors import ClipError
from aqa_pipeline.extraction.stream import encode_stream
from aqa_pipeline.media.clip import ClipFrames, DecodeTask
from aqa_pipeline.media.decode_pool import Decoded

Frames = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]


def clip(number: int, *, fails: bool = False) -> Decoded:
    task = DecodeTask(
        clip_id=str(number),
        video=Path("v.mp4"),
        positions=np.arange(2),
        pixels=PIXEL_PRESETS["demo"],
        index_folder=Path(),
        strict_window=False,
    )
    if fails:
        return Decoded(task, None, ClipError("damaged"), 1)
    frames = np.full((2, 1, 1, 3), number, np.uint8)
    return Decoded(task, ClipFrames(task.video, frames, task.positions, np.zeros(2), 0, 2), None, 1)


def views(decoded: Decoded) -> list[Frames]:
    """A second view, 100 higher, of odd clips."""
    if decoded.clip is None:
        return []
    frames = decoded.clip.frames
    return [frames, frames + np.uint8(100)] if frames[0, 0, 0, 0] % 2 else [frames]


class Several:
    """Writes down what is begun and what is waited for."""

    def __init__(self, clips_at_once: int) -> None:
        self.clips_at_once = clips_at_once
        self.events: list[str] = []

    def __call__(self, frames: Frames) -> Features:
        return self.start([frames])()[0]

    def start(self, windows: Sequence[Frames]) -> Callable[[], list[Features]]:
        numbers = [int(frames[0, 0, 0, 0]) for frames in windows]
        name = ",".join(map(str, numbers))
        self.events.append(f"start {name}")

        def wait() -> list[Features]:
            self.events.append(f"wait {name}")
            return [np.array([[number]], np.float32) for number in numbers]

        return wait


def seen(encoded: Iterator[tuple[Decoded, list[Features]]]) -> list[tuple[str, list[int]]]:
    return [(c.task.clip_id, [int(f[0, 0]) for f in features]) for c, features in encoded]


def test_a_plain_network_takes_clip_after_clip() -> None:
    def encode(frames: Frames) -> Features:
        return frames[:1, 0, 0, :1].astype(np.float32)

    clips = [clip(1), clip(2, fails=True), clip(4)]
    assert seen(encode_stream(clips, views, encode)) == [("1", [1, 101]), ("2", []), ("4", [4])]


def test_every_clip_gets_its_own_features_in_groups() -> None:
    several = Several(clips_at_once=3)
    clips = [clip(n) for n in range(1, 8)]
    expected = [(str(n), [n, n + 100] if n % 2 else [n]) for n in range(1, 8)]
    assert seen(encode_stream(clips, views, several)) == expected
    # A group is whole clips, so that it may be a little larger than a batch.
    assert several.events[:2] == ["start 1,101,2", "start 3,103,4"]
    assert several.events[-2:] == ["wait 5,105,6", "wait 7,107"]


def test_one_group_is_computed_while_the_next_is_gathered_and_no_third_is_begun() -> None:
    several = Several(clips_at_once=1)

    def decoded() -> Iterator[Decoded]:
        for number in (2, 4, 6, 8):
            several.events.append(f"decoded {number}")
            yield clip(number)

    list(encode_stream(decoded(), views, several))
    assert several.events == [
        *("decoded 2", "start 2", "decoded 4", "start 4"),
        *("decoded 6", "wait 2", "start 6", "decoded 8", "wait 4", "start 8"),
        *("wait 6", "wait 8"),
    ]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_failed_clip_is_passed_on_at_once(count: int) -> None:
    several = Several(clips_at_once=2)
    clips = [clip(2 * n) for n in range(count)] + [clip(9, fails=True)]
    found = seen(encode_stream(clips, views, several))
    assert sorted(found) == sorted([(str(2 * n), [2 * n]) for n in range(count)] + [("9", [])])
