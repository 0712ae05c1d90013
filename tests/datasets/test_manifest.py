from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from aqa_pipeline.config import Protocol
from aqa_pipeline.datasets.manifest import KNOWN, Clip, Manifest, read_manifest, write_manifest
from aqa_pipeline.errors import DataError

HEADER = "clip_id,video,start_frame,end_frame,score,split,category,difficulty,note\n"
ROWS = "a,v/1.mp4,10,120,64.5,train,diving,3.2,x\nb,v/2.mp4,,,50,test,,,\n"


def manifest_of(tmp_path: Path, text: str, toml: str | None = None) -> Manifest:
    path = tmp_path / "m.csv"
    path.write_text(text, encoding="utf-8")
    if toml is not None:
        path.with_suffix(".toml").write_text(toml)
    return read_manifest(path)


def test_columns_have_their_types(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, HEADER + ROWS)
    clips = manifest.clips
    assert list(clips) == [*KNOWN, "note"]
    assert clips["score"].tolist() == [64.5, 50.0]
    assert clips["end_frame"].dtype == "Int64"
    assert clips["end_frame"].isna().tolist() == [False, True]
    assert clips["difficulty"].isna().tolist() == [False, True]
    assert clips["category"].tolist() == ["diving", ""]
    assert len(manifest) == 2
    assert manifest.name == "m"


def test_three_columns_are_enough(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, "clip_id,video,score\na,1.mp4,3\n")
    assert list(manifest.clips) == list(KNOWN)
    assert manifest.protocol == Protocol("m")
    assert manifest.clip_list() == [Clip("a", tmp_path / "1.mp4", None, None)]
    assert manifest.exemplar_keys() == [()]


def test_videos_are_relative_to_the_manifest(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, f"clip_id,video,score\na,../x.mp4,1\nb,{tmp_path}/y.mp4,2\n")
    videos = [clip.video for clip in manifest.clip_list()]
    assert videos == [tmp_path / "../x.mp4", tmp_path / "y.mp4"]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    first = manifest_of(tmp_path, HEADER + ROWS)
    write_manifest(tmp_path / "again.csv", first.clips)
    again = read_manifest(tmp_path / "again.csv")
    pd.testing.assert_frame_equal(again.clips, first.clips)


def test_columns_without_a_value_are_not_written(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, "score,clip_id,video\n1,a,v\n")
    write_manifest(manifest.path, manifest.clips)
    assert manifest.path.read_text() == "clip_id,video,score\na,v,1.0\n"


def test_what_spreadsheets_do_to_a_table(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    text = 'clip_id,video,score,end_frame\r\n"a, b", v.mp4 ,1.50,120.0\r\n,,,\r\n\r\nc,w.mp4,2,\r\n'
    path.write_bytes(text.encode("utf-8-sig"))
    clips = read_manifest(path).clips
    assert clips["clip_id"].tolist() == ["a, b", "c"]
    assert clips["video"].tolist() == ["v.mp4", "w.mp4"]
    assert clips["end_frame"].tolist()[0] == 120


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "column clip_id, video, score is missing; found nothing"),
        ("clip_id,video\na,b\n", "column score is missing; found clip_id, video"),
        ("clip_id;video;score\n", "not separated by commas: `aqa manifest import csv`"),
        ("clip_id,video,score,score\n", "column score stands more than once"),
        ("clip_id,video,score,\n", "column 4 has no name"),
        ("clip_id,video,score\n", "no clips, only a header"),
        ("clip_id,video,score\na,b\n", "line 2: 2 cells, the header has 3"),
        ("clip_id,video,score\na,b,1,2\n", "line 2: 4 cells, the header has 3"),
        ('clip_id,video,score\n"a,b,1\n', "not a CSV file"),
        ("clip_id,video,score\na,b,\n", "line 2: score is empty"),
        ("clip_id,video,score\na,b,good\n", "line 2: score 'good' is not a number"),
        ('clip_id,video,score\na,b,"1,5"\n', "decimals are written with a point"),
        ("clip_id,video,score\na,b,1_5\n", "score '1_5' is not a number"),
        ("clip_id,video,score\na,b,nan\n", "score 'nan' is not a finite number"),
        ("clip_id,video,score\n,b,1\n", "line 2: clip_id is empty"),
        ("clip_id,video,score\na,,1\n", "line 2: video is empty"),
        ("clip_id,video,score\na,b,1\n\na,c,2\n", "line 4: clip_id 'a' stands already in line 2"),
        ("clip_id,video,score,difficulty\na,b,1,0\n", "difficulty 0 is not above 0"),
        ("clip_id,video,score,start_frame\na,b,1,-3\n", "start_frame '-3' is not a frame number"),
        ("clip_id,video,score,start_frame\na,b,1,-1\n", "start_frame '-1' is not a frame number"),
        ("clip_id,video,score,end_frame\na,b,1,2.5\n", "end_frame '2.5' is not a frame number"),
        (
            "clip_id,video,score,start_frame,end_frame\na,b,1,9,9\n",
            "end_frame 9 is not after start_frame 9",
        ),
        ("clip_id,video,score,split\na,b,1,val\n", "split 'val' is neither train nor test"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=f"m.csv: .*{sentence}") as raised:
        manifest_of(tmp_path, text)
    assert "\n" not in str(raised.value)


def test_all_bad_rows_are_told_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "clip_id,video,score\na,b,x\n,b,1\nc,,2\n"
    with pytest.raises(DataError, match=r"line 2: .*; line 3: .*; line 4: ") as raised:
        manifest_of(tmp_path, text)
    assert "more" not in str(raised.value)
    with pytest.raises(DataError, match=r"line 11: score 'x' is not a number; and 2 more$"):
        manifest_of(tmp_path, "clip_id,video,score\n" + "".join(f"{i},b,x\n" for i in range(12)))


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such manifest; make one with `aqa manifest import`"):
        read_manifest(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_bytes("clip_id,video,score\nä,v,1\n".encode("latin1"))
    with pytest.raises(DataError, match=r"not UTF-8 text .* at byte 20"):
        read_manifest(tmp_path / "m.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"folder: cannot be read \("):
        read_manifest(tmp_path / "folder")


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("exemplar_key = ['level']", "names the column 'level' \\(exemplar_key\\)"),
        ("exemplar_key = ['difficulty']", "'difficulty' .exemplar_key., which 1 of 2 clips"),
        ("label_transform = 'raw'", "'difficulty' .label_transform = .raw.., which 1 of 2 clips"),
        ("per_category = true", "'category' .per_category., which 1 of 2 clips do not give"),
        ("fold_columns = ['fold_1']", "names the column 'fold_1' .fold_columns."),
        ("fold_columns = ['note']", "fold column 'note' holds 'x'; its cells are train, test"),
    ],
)
def test_a_protocol_that_does_not_fit_the_table(tmp_path: Path, toml: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        manifest_of(tmp_path, HEADER + ROWS, toml)


def test_difficulties_that_went_through_arithmetic_are_one_key(tmp_path: Path) -> None:
    table = "clip_id,video,score,difficulty\na,v,1,3.1\nb,v,2,3.1000000000000005\nc,v,3,3.10001\n"
    keys = manifest_of(tmp_path, table, "exemplar_key = ['difficulty']").exemplar_keys()
    assert keys == [(3.1,), (3.1,), (3.10001,)]


def test_keys_and_splits_of_the_protocol(tmp_path: Path) -> None:
    manifest = manifest_of(
        tmp_path,
        "clip_id,video,score,difficulty,kind,f1\na,v,1,3.2,x,train\nb,v,2,3,y,\n",
        "exemplar_key = ['difficulty', 'kind']\nfold_columns = ['f1']",
    )
    assert manifest.exemplar_keys() == [(3.2, "x"), (3.0, "y")]
    assert manifest.split_columns == ("f1",)
    assert manifest_of(tmp_path, HEADER + ROWS, "").split_columns == ("split",)
