from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from aqa_pipeline.datasets.jigsaws import PROTOCOL, import_jigsaws
from aqa_pipeline.datasets.manifest import read_manifest
from aqa_pipeline.errors import DataError
from tests.datasets.test_importing import frames, touch
from tests.support.annotations import (
    Hostile,
    jigsaws_labels,
    jigsaws_splits,
    write_jigsaws,
    write_jigsaws_meta,
    write_pickle,
    written_out,
)

FOLDS = ["fold_1", "fold_2", "fold_3", "fold_4"]


def test_rows_and_published_folds(tmp_path: Path) -> None:
    imported = import_jigsaws(write_jigsaws(tmp_path))
    clips = imported.clips.set_index("clip_id")
    assert len(clips) == 24
    assert clips["category"].value_counts().to_dict() == {
        "Suturing": 8,
        "Needle_Passing": 8,
        "Knot_Tying": 8,
    }
    for trial, ratings in jigsaws_labels().items():
        assert clips.loc[trial, "score"] == sum(ratings)
    for task, lists in jigsaws_splits().items():
        for column, trials in zip(FOLDS, lists, strict=True):
            is_test = (clips["category"] == task) & (clips[column] == "test")
            assert sorted(clips.index[is_test]) == sorted(trials)
    assert clips.at["Suturing_B002", "surgeon"] == "B"
    assert clips.at["Suturing_B002", "supertrial"] == "2"
    assert clips.loc["Suturing_B002", "video"] == "Suturing_B002_capture1"
    source = f"{PROTOCOL.source}; published folds of splits.pkl"
    assert imported.protocol == dataclasses.replace(PROTOCOL, source=source)


def test_the_protocol_is_that_of_the_paper() -> None:
    assert written_out(PROTOCOL) == {
        "name": "jigsaws",
        "window_rule": "even",
        "window_frames": 160,
        "snippet_frames": 16,
        "snippet_starts": (0, 16, 32, 48, 64, 80, 96, 112, 128, 144),
        "pixels": "kinetics",
        "shift_frames": 0,
        "exemplar_key": ("category",),
        "label_transform": "none",
        "label_ranges": {},
        "score_range": 24.0,
        "epsilon": 30.0,
        "score_range_without_difficulty": None,
        "per_category": True,
        "fold_columns": ("fold_1", "fold_2", "fold_3", "fold_4"),
        "rho_average": "fisher",
    }


def test_meta_files_give_the_same_scores_and_seeded_folds(tmp_path: Path) -> None:
    imported = import_jigsaws(write_jigsaws_meta(tmp_path / "meta"), seed=3)
    clips = imported.clips
    pickled = import_jigsaws(write_jigsaws(tmp_path / "pickled")).clips
    columns = ["clip_id", "score", "category", *(f"rating_{i}" for i in range(1, 7))]
    pd.testing.assert_frame_equal(clips[columns], pickled[columns])
    assert set(clips["skill"]) == {"N"}
    assert "folds made here with seed 3, not the published ones" in imported.protocol.source
    assert ((clips[FOLDS] == "test").sum(axis=1) == 1).all()
    for _, task in clips.groupby("category"):
        assert (task[FOLDS] == "test").sum().tolist() == [2, 2, 2, 2]
    again = import_jigsaws(tmp_path / "meta", seed=4).clips
    assert not again[FOLDS].equals(clips[FOLDS])


def test_leaving_out_one_supertrial(tmp_path: Path) -> None:
    imported = import_jigsaws(write_jigsaws(tmp_path), folds="supertrial")
    clips = imported.clips
    assert imported.protocol.fold_columns == ("fold_1", "fold_2")
    assert ((clips["fold_1"] == "test") == (clips["supertrial"] == "1")).all()
    imported.write(tmp_path / "j.csv")
    assert read_manifest(tmp_path / "j.csv").split_columns == ("fold_1", "fold_2")


def test_the_left_view_is_found_in_the_official_folders(tmp_path: Path) -> None:
    write_jigsaws(tmp_path / "a")
    touch(
        tmp_path / "v" / "Suturing" / "video" / "Suturing_B001_capture1.avi",
        tmp_path / "v" / "Suturing" / "video" / "Suturing_B001_capture2.avi",
    )
    frames(tmp_path / "v" / "Knot_Tying_B001_capture1", range(1, 3))
    imported = import_jigsaws(tmp_path / "a", tmp_path / "v")
    videos = imported.clips.set_index("clip_id")["video"]
    assert videos["Suturing_B001"].endswith("Suturing/video/Suturing_B001_capture1.avi")
    assert videos["Knot_Tying_B001"] == str(tmp_path / "v" / "Knot_Tying_B001_capture1")
    assert len(imported.missing) == 22


def test_a_trial_in_no_fold_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = jigsaws_splits()
    dropped = splits["Suturing"][0].pop()
    with caplog.at_level(logging.WARNING):
        clips = import_jigsaws(write_jigsaws(tmp_path, splits=splits)).clips
    assert dropped not in set(clips["clip_id"])
    assert f"1 of 24 rated trials are in no fold and left out, {dropped} first" in caplog.text


def test_a_total_that_does_not_add_up_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "meta_file_Suturing.txt"
    path.write_text("".join(f"Suturing_B00{i} E 30 1 2 3 4 5 {i}\n" for i in range(1, 5)))
    with caplog.at_level(logging.WARNING):
        assert import_jigsaws(tmp_path).clips["score"].tolist() == [16, 17, 18, 19]
    assert "line 1: the total is 30, but the ratings add up to 16" in caplog.text


def changed_labels(**ratings: Any) -> dict[str, Any]:
    return {**jigsaws_labels(), **ratings}


def changed_split(fold: Any) -> dict[str, Any]:
    splits: dict[str, Any] = jigsaws_splits()
    splits["Suturing"][0] = fold
    return splits


def meta(line: str) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        (folder / "label.pkl").unlink()
        (folder / "meta_file_Suturing.txt").write_text(line)

    return write


GOOD_LINE = "Suturing_B001 N 16 1 2 3 4 5 1\n"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no labels": (
        lambda f: (f / "label.pkl").unlink(),
        r"neither label\.pkl nor meta_file_Suturing\.txt",
    ),
    "a list": (lambda f: write_jigsaws(f, labels=[1]), r"label\.pkl: a pickled dict"),
    "five ratings": (
        lambda f: write_jigsaws(f, labels=changed_labels(Suturing_B001=[1] * 5)),
        "trial Suturing_B001 is .* not a list of 6 numbers",
    ),
    "rating 6": (
        lambda f: write_jigsaws(f, labels=changed_labels(Suturing_B001=[1, 2, 3, 4, 5, 6])),
        "ratings 1, 2, 3, 4, 5, 6; each is a whole number from 1 to 5",
    ),
    "strange trial": (
        lambda f: write_jigsaws(f, labels=changed_labels(Peg_B001=[1] * 6)),
        "trial 'Peg_B001' is not named like Suturing_B001",
    ),
    "strange task": (
        lambda f: write_jigsaws(f, splits={"Peg": [[]] * 4}),
        "task 'Peg' is none of Suturing",
    ),
    "three folds": (
        lambda f: write_jigsaws(f, splits={"Suturing": [[]] * 3}),
        "task Suturing: four lists of trials are expected",
    ),
    "a fold of numbers": (
        lambda f: write_jigsaws(f, splits=changed_split([1])),
        "task Suturing, fold 1: a list of trials is expected",
    ),
    "unrated trial": (
        lambda f: write_jigsaws(f, splits=changed_split(["Suturing_Z001"])),
        "trial Suturing_Z001 has no ratings",
    ),
    "overlapping folds": (
        lambda f: write_jigsaws(f, splits=changed_split(jigsaws_splits()["Suturing"][1])),
        "stands twice; the folds must not overlap",
    ),
    "no trial of the labels": (
        lambda f: write_jigsaws(f, splits={"Suturing": [[]] * 4}),
        "none of the 24 rated trials is in it",
    ),
    "meta without a rating": (
        meta("Suturing_B001 N 16 1 2 3 4 5\n"),
        r"meta_file_Suturing\.txt, line 1: 8 values; expected trial, skill, total",
    ),
    "meta with a text": (
        meta("Suturing_B001 N 16 1 2 3 4 5 x\n"),
        "line 1: total and ratings must be numbers",
    ),
    "meta with a trial twice": (
        meta(GOOD_LINE * 2),
        "line 2: trial Suturing_B001 stands already above",
    ),
    "empty meta": (meta("\n"), r"meta_file_Suturing\.txt: no trial in it"),
    "meta and labels differ": (
        lambda f: (f / "meta_file_Suturing.txt").write_text("Suturing_B001 N 6 1 1 1 1 1 1\n"),
        r"but its meta file says \(1, 1, 1, 1, 1, 1\)",
    ),
    "hostile": (
        lambda f: write_pickle(f / "splits.pkl", Hostile(f / "harm")),
        r"splits\.pkl: refused, it asks for",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_annotation_is_one_sentence(tmp_path: Path, name: str) -> None:
    write_jigsaws(tmp_path)
    break_it, sentence = BROKEN[name]
    break_it(tmp_path)
    with pytest.raises(DataError, match=sentence) as raised:
        import_jigsaws(tmp_path)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "harm").exists()


def test_published_folds_need_their_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no splits\.pkl in it, which holds the published folds"):
        import_jigsaws(write_jigsaws_meta(tmp_path), folds="published")
