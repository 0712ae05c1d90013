from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqa_pipeline.datasets.finediving import PROTOCOL, import_finediving
from aqa_pipeline.errors import DataError
from tests.datasets.test_importing import frames
from tests.support.annotations import (
    DIVES,
    Hostile,
    dive,
    write_finediving,
    write_pickle,
    written_out,
)

KEY = ("Tokyo_2", 0)


def test_rows_and_protocol(tmp_path: Path) -> None:
    imported = import_finediving(write_finediving(tmp_path))
    clips = imported.clips
    assert clips["clip_id"].tolist() == [
        "Tokyo_2_0",
        "WorldCup_final_r1_0",
        "WorldCup_final_r1_2",
        "WorldCup_final_r1_10",
    ]
    assert clips["video"].tolist()[3] == "WorldCup_final_r1/10"
    assert clips["score"].tolist() == [50.0, 81.18, 70.0, 60.0]
    assert clips["split"].tolist() == ["test", "train", "train", "train"]
    assert clips["action_type"].tolist() == ["207c", "207c", "5253b", "207c"]
    assert clips["end_frame"].isna().all()
    assert clips["annotated_end_frame"].tolist() == ["1299"] * 4
    assert [clips[f"judge_{i}"].tolist()[0] for i in (1, 2, 3)] == ["8.0", "8.5", "8.0"]
    assert imported.protocol.source == PROTOCOL.source
    assert written_out(imported.protocol) == {
        "name": "finediving",
        "window_rule": "even",
        "window_frames": 96,
        "snippet_frames": 16,
        "snippet_starts": (0, 10, 20, 30, 40, 50, 60, 70, 80),
        "pixels": "kinetics",
        "shift_frames": 0,
        "exemplar_key": ("action_type",),
        "label_transform": "none",
        "label_ranges": {},
        "score_range": None,
        "epsilon": None,
        "score_range_without_difficulty": None,
        "per_category": False,
        "fold_columns": (),
        "rho_average": "fisher",
    }


def test_the_steps_of_the_fine_grained_annotation(tmp_path: Path) -> None:
    write_finediving(tmp_path)
    fine = {key: dive(steps_transit_frames=np.array([1220, 1260])) for key in DIVES}
    write_pickle(tmp_path / "Annotations" / "FineDiving_fine-grained_annotation.pkl", fine)
    clips = import_finediving(tmp_path).clips
    assert clips["steps_transit_frames"].tolist() == ["1220 1260"] * 4


def test_marks_of_unequal_number_and_marks_that_are_words(tmp_path: Path) -> None:
    write_finediving(tmp_path, {**DIVES, KEY: dive(judge_scores=["8.0", "failed"])})
    clips = import_finediving(tmp_path).clips
    assert clips["judge_scores"].tolist() == ["8.0 failed", "", "", ""]
    write_finediving(tmp_path, {**DIVES, KEY: dive(judge_scores=np.array([8.0, 8.5, 8.0, 7.5]))})
    clips = import_finediving(tmp_path).clips
    assert clips["judge_4"].tolist() == ["7.5", "", "", ""]


def test_the_lists_are_enough(tmp_path: Path) -> None:
    write_finediving(tmp_path)
    (tmp_path / "Annotations" / "FineDiving_coarse_annotation.pkl").unlink()
    lists = {key: [d["action_type"], d["dive_score"], 3.3, [7, 9], [1]] for key, d in DIVES.items()}
    write_pickle(tmp_path / "Annotations" / "fine-grained_annotation_aqa.pkl", lists)
    clips = import_finediving(tmp_path).clips
    assert clips["score"].tolist() == [50.0, 81.18, 70.0, 60.0]
    assert clips["steps_transit_frames"].tolist() == ["7 9"] * 4


def test_dives_are_folders_whose_numbers_need_not_begin_at_one(tmp_path: Path) -> None:
    write_finediving(tmp_path / "a")
    frames(tmp_path / "v" / "Tokyo_2" / "0", range(1200, 1210))
    imported = import_finediving(tmp_path / "a", tmp_path / "v")
    assert imported.clips["video"].tolist()[0] == str(tmp_path / "v" / "Tokyo_2" / "0")
    assert len(imported.missing) == 3


def without(name: str) -> dict[Any, Any]:
    return {**DIVES, KEY: {k: v for k, v in dive().items() if k != name}}


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no annotation": (
        lambda f: (f / "Annotations" / "FineDiving_coarse_annotation.pkl").unlink(),
        r"no FineDiving_coarse_annotation\.pkl or FineDiving_fine-grained_annotation\.pkl or",
    ),
    "no split": (
        lambda f: (f / "train_test_split" / "train_split.pkl").unlink(),
        r"no train_split\.pkl in it",
    ),
    "a list": (lambda f: write_finediving(f, [1]), "a pickled dict of clips is expected"),
    "short lists": (
        lambda f: write_finediving(f, {**DIVES, KEY: ["207c", 50.0]}),
        r"dive \('Tokyo_2', 0\): 2 values, expected action_type, dive_score",
    ),
    "no action": (
        lambda f: write_finediving(f, without("action_type")),
        r"dive \('Tokyo_2', 0\): field 'action_type' is missing",
    ),
    "no score": (lambda f: write_finediving(f, without("dive_score")), "'dive_score' is missing"),
    "action of numbers": (
        lambda f: write_finediving(f, {**DIVES, KEY: dive(action_type=207)}),  # type: ignore[arg-type]
        "action_type is 207 .int., not a text",
    ),
    "true for a score": (
        lambda f: write_finediving(f, {**DIVES, KEY: dive(score=True)}),
        "dive_score is True .bool., not a finite number",
    ),
    "no difficulty": (
        lambda f: write_finediving(f, {**DIVES, KEY: dive(difficulty=-1)}),
        "clip Tokyo_2_0: difficulty -1.0 is not above 0",
    ),
    "half a frame": (
        lambda f: write_finediving(f, {**DIVES, KEY: dive(end_frame=0.5)}),
        "end_frame is 0.5 .float., not a whole number",
    ),
    "three in a key": (lambda f: write_finediving(f, {(1, 2, 3): dive()}), "a pair .video, clip."),
    "unknown dive": (
        lambda f: write_finediving(f, test=[("Rome", 1)]),
        r"clip \('Rome', 1\) is not in the annotations",
    ),
    "both sides": (lambda f: write_finediving(f, train=[KEY]), "is in train_split.pkl too"),
    "steps of no list": (
        lambda f: write_pickle(
            f / "FineDiving_fine-grained_annotation.pkl", {KEY: dive(steps_transit_frames=3)}
        ),
        "steps_transit_frames is no list",
    ),
    "hostile": (
        lambda f: write_finediving(f, Hostile(f / "harm")),
        r"coarse_annotation\.pkl: refused, it asks for",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_annotation_is_one_sentence(tmp_path: Path, name: str) -> None:
    write_finediving(tmp_path)
    break_it, sentence = BROKEN[name]
    break_it(tmp_path)
    with pytest.raises(DataError, match=sentence) as raised:
        import_finediving(tmp_path)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "harm").exists()
