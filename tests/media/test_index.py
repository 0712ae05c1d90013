"""Memory of a file: its content, and how long it counts."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from aqa_pipeline.config import PixelPreset
from aqa_pipeline.errors import ClipError
from aqa_pipeline.media import index as video_index
from aqa_pipeline.media.identity import known_length, source_identity
from aqa_pipeline.media.index import VideoIndex, read_index
from aqa_pipeline.media.reader import VideoReader
from tests.support.videos import frame_numbers, write_folder, write_video


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "v.mp4", 30)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files demuxed or hashed so far, one entry each time."""
    done: list[Path] = []
    scan, digest = video_index._scan, hashlib.file_digest

    def counted_scan(path: Path) -> video_index.VideoIndex:
        done.append(path)
        return scan(path)

    def counted_digest(file: Any, name: str) -> Any:
        done.append(Path(file.name))
        return digest(file, name)

    monkeypatch.setattr(video_index, "_scan", counted_scan)
    monkeypatch.setattr(hashlib, "file_digest", counted_digest)
    return done


def test_index_and_hash_are_remembered_until_the_file_changes(
    video: Path, tmp_path: Path, scans: list[Path]
) -> None:
    folder = tmp_path / "index"
    first = read_index(video, index_folder=folder)
    identity = source_identity(video, index_folder=folder)
    assert len(scans) == 2
    again = read_index(video, index_folder=folder)
    assert source_identity(video, index_folder=folder) == identity
    assert len(scans) == 2
    for name in ("pts", "rank", "key_pts", "key_rank"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
        assert getattr(again, name).dtype == np.int64
    assert (again.timed, again.time_base, again.width) == (True, first.time_base, 64)
    assert {path.suffix for path in folder.iterdir()} == {".npz", ".json"}  # nothing temporary

    os.utime(video, ns=(1, 1))
    read_index(video, index_folder=folder)
    source_identity(video, index_folder=folder)
    assert len(scans) == 4


def index_of(pts: list[int], time_base: Fraction) -> VideoIndex:
    """Of a file whose first picture is its only keyframe."""
    ranks = np.arange(len(pts))
    return VideoIndex(
        num_frames=len(pts),
        pts=np.array(pts),
        rank=ranks,
        key_pts=np.array(pts[:1]),
        key_rank=ranks[:1],
        timed=True,
        time_base=time_base,
        width=64,
        height=48,
    )


def test_a_time_at_which_nothing_is_shown_has_no_position() -> None:
    index = index_of([0, 10, 20], Fraction(1, 25))
    assert [index.position_of(pts) for pts in (0, 10, 20)] == [0, 1, 2]
    assert [index.position_of(pts) for pts in (-1, 5, 19, 21, None)] == [None] * 5


def test_seconds_are_the_nearest_to_the_fraction() -> None:
    # 3 x 0.1 is 0.30000000000000004.
    assert index_of([0, 3, 7], Fraction(1, 10)).pts_seconds(np.arange(3)).tolist() == [0, 0.3, 0.7]
    # An NTSC period: 1001 / 30000 s.
    index = index_of([0, 29, 58], Fraction(1001, 30000))
    assert index.pts_seconds(np.array([2])).tolist() == [58 * 1001 / 30000]


def copied(source: Path, target: Path, first: int, times: Mapping[int, int]) -> Path:
    """The packets of a file from one on; some with the time of another packet, by rank."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        packets = [packet for packet in old.demux(stream) if packet.size]
        pts = [packet.pts for packet in packets]
        for rank, packet in enumerate(packets[first:], start=first):
            packet.pts, packet.stream = pts[times.get(rank, rank)], copy
            if times:  # no later than any time of presentation, and ascending
                packet.dts = rank - 1000
            new.mux(packet)
    return target


def test_pictures_before_the_first_keyframe_are_not_counted(tmp_path: Path) -> None:
    """A broadcast that was cut anywhere: the rest of one group of pictures, then the next, which
    begins with pictures that lean on the group before."""
    whole = write_video(tmp_path / "whole.ts", 40, codec="mpeg2video", gop=8, options={"bf": "2"})
    index = read_index(whole)
    key, first = index.key_position(1), int(index.key_rank[1])
    leading = index.rank[:key] > first
    assert leading.any()
    cut = copied(whole, tmp_path / "cut.ts", first - 2, {})
    assert read_index(cut).num_frames == 40 - key
    with VideoReader(cut, PixelPreset("small", crop=48, short_side=48)) as reader:
        frames = reader.read(np.arange(40 - key)).frames
    assert frame_numbers(frames) == list(range(key, 40))


def test_a_picture_before_the_first_keyframe_is_not_counted_whatever_its_time(
    tmp_path: Path,
) -> None:
    whole = write_video(tmp_path / "whole.mkv", 30, b_frames=0)
    first = int(read_index(whole).key_rank[1])
    # The packet before the keyframe and the last one have each other's time.
    cut = copied(whole, tmp_path / "cut.mkv", first - 1, {first - 1: 29, 29: first - 1})
    index = read_index(cut)
    assert index.timed
    # One is before the keyframe in the file, the other in time.
    assert index.rank.tolist() == list(range(1, 30 - first))


def test_times_that_are_repeated_are_not_trusted(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", 24, b_frames=0)
    twice = copied(whole, tmp_path / "twice.mkv", 0, {5: 4})
    index = read_index(twice)
    assert (index.timed, index.num_frames) == (False, 24)
    with VideoReader(twice, PixelPreset("small", crop=48, short_side=48)) as reader:
        assert frame_numbers(reader.read(np.arange(24)).frames) == list(range(24))


@pytest.mark.parametrize("damage", [b"", b"not an archive", None])
def test_a_damaged_memo_is_made_again(video: Path, tmp_path: Path, damage: bytes | None) -> None:
    folder = tmp_path / "index"
    read_index(video, index_folder=folder)
    (memo,) = folder.glob("*.npz")
    memo.write_bytes(memo.read_bytes()[:-40] if damage is None else damage)
    assert read_index(video, index_folder=folder).num_frames == 30
    assert np.load(memo)["pts"].shape == (30,)


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"signature": 3'])
def test_damaged_facts_are_made_again(video: Path, tmp_path: Path, damage: bytes) -> None:
    folder = tmp_path / "index"
    identity = source_identity(video, index_folder=folder)
    (facts,) = folder.glob("*.json")
    facts.write_bytes(damage)
    assert source_identity(video, index_folder=folder) == identity


def test_a_length_is_known_without_opening_the_video_until_it_or_pyav_changes(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    assert known_length(video, index_folder=folder) is None
    read_index(video, index_folder=folder)
    assert known_length(video, index_folder=folder) == 30
    with monkeypatch.context() as patch:
        patch.setattr("aqa_pipeline.media.identity.av_version", lambda: "0.0")
        assert known_length(video, index_folder=folder) is None
    os.utime(video, ns=(1, 1))
    assert known_length(video, index_folder=folder) is None
    assert known_length(write_folder(tmp_path / "frames", 4), index_folder=folder) == 4


def test_a_folder_that_cannot_be_written_costs_only_time(
    video: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with caplog.at_level(logging.WARNING):
        assert read_index(video, index_folder=blocked / "index").num_frames == 30
    assert "cannot remember facts about" in caplog.text


def test_identity_of_a_file_is_size_and_content(video: Path, tmp_path: Path) -> None:
    data = video.read_bytes()
    expected = f"file:{len(data)}:{hashlib.sha256(data).hexdigest()}"
    assert source_identity(video) == source_identity(video, index_folder=tmp_path) == expected


def test_identity_of_a_broken_file_needs_no_decoder(tmp_path: Path) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"abc")
    assert source_identity(path, index_folder=tmp_path / "i").startswith("file:3:ba7816bf")
    with pytest.raises(ClipError, match="as a video"):
        read_index(path, index_folder=tmp_path / "i")


def test_identity_of_a_folder_is_names_and_sizes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", 3)
    before = source_identity(folder)
    assert before.startswith("folder:3:")
    (folder / "note.txt").write_text("ignored")
    assert source_identity(folder) == before
    picture = folder / "00000002.png"
    picture.write_bytes(picture.read_bytes() + b"\0")
    assert source_identity(folder) != before


def test_identity_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match=r"cannot read .*absent.mp4: No such file"):
        source_identity(tmp_path / "absent.mp4")
