"""Frames of videos from anywhere: refused in one line, or decoded, in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from aqa_pipeline.errors import ClipError
from aqa_pipeline.media import checks
from aqa_pipeline.media.clip import (
    ClipFrames,
    ClipRequest,
    FrameChunk,
    StreamHead,
    escape_unprintable,
    read_clip,
    stream_clip,
)
from aqa_pipeline.media.index import open_container, read_index
from aqa_pipeline.media.sandbox import LimitedProcess
from tests.support.bad_videos import BAD, ODD, BadVideo, good_video
from tests.support.small_project import PROTOCOL
from tests.support.videos import frame_numbers, write_video


@pytest.fixture(scope="module")
def process() -> Iterator[LimitedProcess]:
    with LimitedProcess(seconds=60) as own:
        yield own


def peak_bytes(_: None) -> int:
    """Most memory that this process ever had; getrusage would count that of its parent too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) * 1024


def test_there_are_thirty_bad_inputs_and_more() -> None:
    assert len(BAD) >= 30
    assert len({bad.name for bad in (*BAD, *ODD)}) == len(BAD) + len(ODD)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_input_is_refused_in_one_line(
    bad: BadVideo, process: LimitedProcess, tmp_path: Path
) -> None:
    path = bad.make(tmp_path)
    with pytest.raises(ClipError) as caught:
        process.call(read_clip, ClipRequest(path, PROTOCOL))
    sentence = str(caught.value)
    assert re.search(bad.says, sentence)
    assert sentence.isprintable()
    assert "Traceback" not in sentence
    assert process.call(peak_bytes, None) < 2**30


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.name)
def test_what_only_looks_odd_is_read(
    odd: BadVideo, process: LimitedProcess, tmp_path: Path
) -> None:
    clip = process.call(read_clip, ClipRequest(odd.make(tmp_path), PROTOCOL))
    assert isinstance(clip, ClipFrames)
    assert clip.frames.shape == (9, 112, 112, 3)
    assert (clip.frame_index[0], clip.frame_index[-1], clip.video_frames) == (15, 23, 24)


def test_an_8k_video_is_read_in_bounded_memory(process: LimitedProcess, tmp_path: Path) -> None:
    path = write_video(tmp_path / "8k.mp4", 10, size=(7680, 4320), gop=10, b_frames=0)
    clip = process.call(read_clip, ClipRequest(path, PROTOCOL))
    assert frame_numbers(clip.frames) == list(range(1, 10))
    assert process.call(peak_bytes, None) < 3 * 2**30


def test_a_file_that_grows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = good_video(tmp_path)

    def read_and_append(video: Path, **folder: Any) -> Any:
        index = read_index(video, **folder)
        with video.open("ab") as file:
            file.write(bytes(100))
        return index

    monkeypatch.setattr(checks, "read_index", read_and_append)
    with pytest.raises(ClipError, match="changed while it was read"):
        read_clip(ClipRequest(path, PROTOCOL))


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    """Not by its beginning alone: FFmpeg itself may not use the formats that would follow it."""
    good_video(tmp_path)
    path = tmp_path / "clip.mp4"
    path.write_text("ffconcat version 1.0\nfile good.mp4\n")
    av.open(str(path)).close()  # it would be followed
    with pytest.raises(ClipError, match=r"cannot read .*clip\.mp4 as a video"):
        open_container(path)


def test_the_window_of_a_clip(tmp_path: Path) -> None:
    path = good_video(tmp_path)
    clip = read_clip(ClipRequest(path, PROTOCOL, start_frame=0, end_frame=20))
    assert frame_numbers(clip.frames) == list(range(11, 20))
    assert clip.num_clamped == 0
    np.testing.assert_allclose(clip.pts_seconds, np.arange(11, 20) / 25)
    beyond = read_clip(ClipRequest(path, PROTOCOL, end_frame=26))
    assert (beyond.num_clamped, beyond.frame_index[-1]) == (2, 23)


@pytest.mark.parametrize(
    ("start", "end", "says"),
    [
        (24, None, "no frame from 24 to 24 .* 24 frames, 0 to 23"),
        (9, 9, "no frame from 9 to 9"),
        (None, 500, "frames 491 to 499 are asked for, the video has 24"),
    ],
)
def test_a_clip_outside_the_video_is_refused(
    tmp_path: Path, start: int | None, end: int | None, says: str
) -> None:
    with pytest.raises(ClipError, match=says):
        read_clip(ClipRequest(good_video(tmp_path), PROTOCOL, start, end))


def test_a_stream_gives_every_frame_once_and_in_order(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", 200, size=(160, 128))
    head, *chunks = stream_clip(ClipRequest(path, PROTOCOL, 10, 190))
    assert head == StreamHead(10, 190, 200)
    seen: list[int] = []
    for chunk in chunks:
        assert isinstance(chunk, FrameChunk)
        assert chunk.first == 10 + len(seen)
        assert len(chunk.frames) <= 64
        seen += frame_numbers(chunk.frames)
    assert seen == list(range(10, 190))


def test_a_text_becomes_one_line() -> None:
    assert escape_unprintable("two\nlines\t\N{VIDEO CAMERA} \udcff\x1b[31m") == (
        "two\\nlines\\t\N{VIDEO CAMERA} \\udcff\\x1b[31m"
    )
