from __future__ import annotations

import logging
from pathlib import Path

import pytest

from aqa_pipeline.config import Protocol
from aqa_pipeline.datasets.annotation import find_annotation, need_annotation
from aqa_pipeline.datasets.importing import ImportedManifest, locate_videos, video_cell
from aqa_pipeline.datasets.manifest import read_manifest
from aqa_pipeline.errors import DataError, UsageError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def frames(folder: Path, numbers: range | list[int]) -> None:
    touch(*(folder / f"img_{number:05d}.jpg" for number in numbers))


def found(root: Path, *places: str) -> str:
    videos, missing = locate_videos(root, {"a": places})
    assert missing == []
    return str(Path(videos[0]).relative_to(root))


def test_a_frame_folder_comes_before_a_file_and_a_file_before_the_next_place(
    tmp_path: Path,
) -> None:
    touch(tmp_path / "x" / "2.AVI", tmp_path / "x" / "2.txt")
    (tmp_path / "x" / "1").mkdir()  # holds no picture
    assert found(tmp_path, "x/1", "x/2") == "x/2.AVI"
    frames(tmp_path / "x" / "2", range(7, 12))
    assert found(tmp_path, "x/1", "x/2") == "x/2"
    touch(tmp_path / "x" / "1.mp4")
    assert found(tmp_path, "x/1", "x/2") == "x/1.mp4"


def test_a_file_may_be_named_with_its_suffix(tmp_path: Path) -> None:
    touch(tmp_path / "1.mp4", tmp_path / "1.avi")
    assert found(tmp_path, "1.mp4") == "1.mp4"
    with pytest.raises(DataError, match=r"holds 1\.avi and 1\.mp4: one video of the name 1"):
        found(tmp_path, "1")


def test_a_gap_in_the_numbering_is_an_error(tmp_path: Path) -> None:
    frames(tmp_path / "01", [1, 2, 4])
    with pytest.raises(DataError, match=r"01: number 3 missing between img_00002\.jpg and img_0"):
        found(tmp_path, "01")


def test_some_missing_videos_are_told_and_all_missing_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "1.mp4")
    with caplog.at_level(logging.WARNING):
        videos, missing = locate_videos(tmp_path, {"a": ["1"], "b": ["2", "02"]})
    assert videos == [str(tmp_path / "1.mp4"), str(tmp_path / "2")]
    assert missing == ["b"]
    assert "1 of 2 clips have no video here, b first" in caplog.text
    with pytest.raises(DataError, match=r"none of the 1 clips .* looked for at 2, 02 \(a folder"):
        locate_videos(tmp_path, {"b": ["2", "02"]})
    with pytest.raises(DataError, match=r"nowhere: no such folder of videos"):
        locate_videos(tmp_path / "nowhere", {"b": ["2"]})


def test_without_a_folder_the_official_place_stands() -> None:
    assert locate_videos(None, {"a": ["01", "1"]}) == (["01"], [])


def test_videos_in_the_project_are_relative_and_others_absolute(tmp_path: Path) -> None:
    manifest = tmp_path / "project" / "manifests" / "m.csv"
    inside = tmp_path / "project" / "videos" / "1.mp4"
    assert video_cell(str(inside), manifest) == "../videos/1.mp4"
    assert video_cell("/elsewhere/1.mp4", manifest) == "/elsewhere/1.mp4"
    assert video_cell("01", manifest) == "01"
    # A project folder that is the whole disk is no project.
    assert video_cell("/data/1.mp4", Path("/tmp/m.csv")) == "/data/1.mp4"


def test_a_written_manifest_finds_its_videos_again(tmp_path: Path) -> None:
    video = tmp_path / "videos" / "1.mp4"
    imported = ImportedManifest.of(
        tmp_path,
        [{"clip_id": "a", "score": 1.5}],
        protocol=Protocol("x"),
        videos=[str(video)],
        missing=[],
    )
    path = tmp_path / "manifests" / "x.csv"
    imported.write(path)
    assert path.read_text() == "clip_id,video,score\na,../videos/1.mp4,1.5\n"
    assert read_manifest(path).clip_list()[0].video.resolve() == video
    with pytest.raises(UsageError, match=r"x\.csv exists already; --force replaces it"):
        imported.write(path)
    path.unlink()
    with pytest.raises(UsageError, match=r"x\.toml exists already"):
        imported.write(path)
    imported.write(path, replace=True)


def test_annotations_are_found_three_folders_deep(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "b" / "c" / "labels.pkl", tmp_path / "a" / "b" / "c" / "d" / "deep.pkl")
    assert find_annotation(tmp_path, "label.pkl", "labels.pkl") == tmp_path / "a/b/c/labels.pkl"
    assert find_annotation(tmp_path, "deep.pkl") is None
    with pytest.raises(DataError, match=r"no deep\.pkl or x\.pkl in it, nor in the folders below"):
        need_annotation(tmp_path, "deep.pkl", "x.pkl")
    touch(tmp_path / "z" / "labels.pkl")
    with pytest.raises(DataError, match=r"a/b/c/labels\.pkl and .*z/labels\.pkl have the same"):
        find_annotation(tmp_path, "labels.pkl")
    touch(tmp_path / "labels.pkl")
    assert find_annotation(tmp_path, "labels.pkl") == tmp_path / "labels.pkl"
    # The preferred name counts more than the nearest folder.
    touch(tmp_path / "z" / "best.pkl")
    assert find_annotation(tmp_path, "best.pkl", "labels.pkl") == tmp_path / "z" / "best.pkl"
    with pytest.raises(DataError, match="no such folder of annotations"):
        find_annotation(tmp_path / "nowhere", "labels.pkl")
