"""Memory of a file: its content, and how long it counts."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqa_pipeline.errors import ClipError
from aqa_pipeline.media import index as video_index
from aqa_pipeline.media.identity import known_length, source_identity
from aqa_pipeline.media.index import read_index
from tests.support.videos import write_folder, write_video


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
