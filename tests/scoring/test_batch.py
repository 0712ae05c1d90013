from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from aqa_pipeline.errors import ClipError, DataError, MissingFactError
from aqa_pipeline.scoring.assessor import ClipMetadata
from aqa_pipeline.scoring.batch import ScoreRequest, results_table, score_clips, score_requests
from aqa_pipeline.scoring.scorer import Scorer
from tests.support.bad_videos import good_video
from tests.support.small_run import load_scorer, make_run
from tests.support.videos import write_folder

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON = ClipMetadata(difficulty=2.0)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scorer]:
    _, folder = make_run(tmp_path_factory.mktemp("predict"))
    with load_scorer(folder) as own:
        yield own


def test_files_frame_folders_and_folders_of_videos(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for name in ("b.MP4", "a.mov", "notes.txt", ".hidden.mp4"):
        (tmp_path / "many" / name).touch()
    write_folder(tmp_path / "many" / "frames", 2)
    write_folder(tmp_path / "single", 2)
    paths = [tmp_path / "many", tmp_path / "single", tmp_path / "any.thing"]
    found = score_requests(paths, COMMON)
    names = [str(clip.video.relative_to(tmp_path)) for clip in found]
    assert names == ["many/a.mov", "many/b.MP4", "many/frames", "single", "any.thing"]
    assert {clip.metadata.difficulty for clip in found} == {2.0}


def test_a_folder_without_videos_is_told(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="no video in this folder"):
        score_requests([tmp_path], COMMON)


def test_a_table_goes_before_the_options(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        "video,start_frame,end_frame,difficulty,score,split,action_type\n"
        "v.mp4,3,20,,71.5,test,107B\n/abs/w.mp4,,,2.5,,,\n"
    )
    first, second = score_requests([table], COMMON)
    assert first == ScoreRequest(
        name="v.mp4",
        video=tmp_path / "v.mp4",
        metadata=ClipMetadata(3, 20, "", 2.0, {"action_type": "107B"}),
        known_score=71.5,
    )
    assert second == ScoreRequest("/abs/w.mp4", Path("/abs/w.mp4"), ClipMetadata(difficulty=2.5))


def test_a_manifest_is_a_table_of_clips(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("clip_id,video,score\nanna,v.mp4,3\nben,v.mp4,4\n")
    assert [clip.name for clip in score_requests([table], COMMON)] == ["anna", "ben"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("clip,score\na,1\n", r"column video is missing; found clip, score"),
        ("video,difficulty\nv.mp4,hard\nw.mp4,-1\n", r"line 2: difficulty .*line 3: difficulty"),
        ("video,start_frame,end_frame\nv.mp4,9,3\n", r"line 2: end_frame 3 is not after"),
        ("video\n", "no clips, only a header"),
    ],
)
def test_a_bad_table_is_told_with_its_lines(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        score_requests([tmp_path / "t.csv"], COMMON)


def test_a_bad_clip_does_not_stop_the_others(scorer: Scorer, tmp_path: Path) -> None:
    good = good_video(tmp_path)
    (tmp_path / "bad\n.mp4").write_text("no video " * 20)
    told: list[tuple[int, int]] = []
    outcomes = list(
        score_clips(
            scorer,
            score_requests([tmp_path / "bad\n.mp4", good], COMMON),
            progress=lambda done, total: told.append((done, total)),
        )
    )
    assert told == [(0, 2), (1, 2), (2, 2)]
    assert outcomes[0].scored is None
    assert "bad\\n.mp4" in outcomes[0].error
    assert outcomes[1].scored is not None
    table = results_table(outcomes)
    assert table["prediction"].isna().tolist() == [True, False]
    assert table["error"].tolist()[1] == ""
    assert pd.notna(table["low"][1])


def test_what_is_missing_is_said_of_which_clip_before_anything_is_read(scorer: Scorer) -> None:
    clips = [ScoreRequest("a", Path("a.mp4"), COMMON), ScoreRequest("b", Path("b.mp4"))]
    with pytest.raises(MissingFactError, match=r"^b: this run scores by difficulty") as caught:
        next(score_clips(scorer, clips))
    assert caught.value.fact == "difficulty"
