from __future__ import annotations

import logging
from pathlib import Path

import pytest

from aqa_pipeline.config import Protocol
from aqa_pipeline.datasets.manifest import read_manifest
from aqa_pipeline.datasets.own import import_csv
from aqa_pipeline.errors import DataError, UsageError
from tests.datasets.test_importing import touch


def own(tmp_path: Path, text: str, *, encoding: str = "utf-8", videos: int = 4) -> Path:
    touch(*(tmp_path / f"{i}.mp4" for i in range(videos)))
    path = tmp_path / "cup.csv"
    path.write_bytes(text.encode(encoding))
    return path


def rows(separator: str = ",", *scores: str) -> str:
    scores = scores or ("5", "7.5", "6", "9")
    lines = [separator.join([f"c{i}", f"{i}.mp4", score]) for i, score in enumerate(scores)]
    return "\n".join([separator.join(["clip_id", "video", "score"]), *lines]) + "\n"


def test_three_columns_are_enough_and_a_split_is_written_down(tmp_path: Path) -> None:
    imported = import_csv(own(tmp_path, rows()), seed=7)
    assert imported.clips["split"].value_counts().to_dict() == {"train": 3, "test": 1}
    assert imported.protocol == Protocol(
        "cup",
        source="own data, cup.csv; split made here: 0.25 of the clips for the test, seed 7",
    )
    path = tmp_path / "manifests" / "cup.csv"
    imported.write(path)
    manifest = read_manifest(path)
    assert manifest.clips["video"].tolist()[0] == "../0.mp4"
    assert manifest.clips["split"].tolist() == imported.clips["split"].tolist()
    assert manifest.protocol == imported.protocol
    assert import_csv(tmp_path / "cup.csv", seed=7).clips.equals(imported.clips)


def test_a_split_and_further_columns_are_kept(tmp_path: Path) -> None:
    text = "clip_id,video,score,split,category,coach\na,0.mp4,1,train,x,Li\nb,1.mp4,2,test,x,\n"
    imported = import_csv(own(tmp_path, text), name="mine")
    assert imported.clips["split"].tolist() == ["train", "test"]
    assert imported.clips["coach"].tolist() == ["Li", ""]
    assert imported.protocol.exemplar_key == ("category",)
    assert imported.protocol.name == "mine"
    assert imported.protocol.source.endswith("split as given")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_tables_of_other_countries(tmp_path: Path, separator: str) -> None:
    text = (
        rows(separator, "5", "7,5", "6,25", "9").replace("score", "Punkte").replace("clip_id", "Nr")
    )
    imported = import_csv(own(tmp_path, text), columns={"score": "Punkte", "clip_id": "Nr"})
    assert imported.clips["score"].tolist() == [5, 7.5, 6.25, 9]


def test_encodings_of_spreadsheets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = rows(";").replace("c0", "Müller")
    for encoding in ("utf-8-sig", "utf-16"):
        assert import_csv(own(tmp_path, text, encoding=encoding)).clips.at[0, "clip_id"] == "Müller"
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        clips = import_csv(own(tmp_path, text, encoding="cp1252")).clips
    assert clips.at[0, "clip_id"] == "Müller"
    assert "not UTF-8; read as Windows-1252" in caplog.text


def test_videos_may_lie_elsewhere_and_come_from_windows(tmp_path: Path) -> None:
    touch(tmp_path / "v" / "a" / "1.mov", tmp_path / "v" / "2.mov")
    text = "clip_id,video,score\nx,a\\1.mov,1\ny,2,3\n"
    imported = import_csv(own(tmp_path, text), tmp_path / "v")
    assert imported.clips["video"].tolist() == [
        str(tmp_path / "v" / "a" / "1.mov"),
        str(tmp_path / "v" / "2.mov"),
    ]


def test_a_split_by_group(tmp_path: Path) -> None:
    text = "clip_id,video,score,club\n" + "".join(f"c{i},{i}.mp4,{i},k{i // 2}\n" for i in range(4))
    imported = import_csv(own(tmp_path, text), group_by="club")
    assert imported.clips.groupby("club")["split"].nunique().tolist() == [1, 1]
    assert "split made here by club" in imported.protocol.source


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (rows(",", "5", "5", "5"), "all 3 scores are 5; there is nothing to learn"),
        (rows(";", "5", "7,5", "6.5"), r"decimals with a comma \(7,5\) and with a point"),
        (rows(";", "5", "1,250", "2,500"), "1,250 may be a decimal or thousands"),
        (rows(";", "5", "1.250,5", "2"), "score '1.250,5' is not a number"),
        (rows(";", "5", "good", "2"), "line 3: score 'good' is not a number"),
        (rows(",", "5", '"7,5"', "2"), "decimals are written with a point"),
        ("name,score\na,1\n", "column clip_id, video is missing; found name, score"),
        ("clip_id,video,score\na,0.mp4,1\na,1.mp4,2\n", "line 3: clip_id 'a' stands already"),
        ("clip_id,video,score,split\na,0.mp4,1,train\nb,1.mp4,2,\n", "1 of 2 rows have no split"),
        ("clip_id,video,score\na,x/7.mp4,1\nb,8.mp4,2\n", "none of the 2 clips has its video here"),
        ("clip_id,video,score\n", "no clips, only a header"),
        ("", "column clip_id, video, score is missing; found nothing"),
        ("a\0b\n", "not a text file; save the table as CSV UTF-8"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence) as raised:
        import_csv(own(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_wrong_names_of_columns(tmp_path: Path) -> None:
    path = own(tmp_path, rows())
    with pytest.raises(
        UsageError, match="no column 'Punkte' to use as score; there are clip_id, v"
    ):
        import_csv(path, columns={"score": "Punkte"})
    with pytest.raises(UsageError, match="'video' is to be score, but there is a column 'score'"):
        import_csv(path, columns={"score": "video"})
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        import_csv(tmp_path / "none.csv")
