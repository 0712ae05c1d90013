from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqa_pipeline.core.groups import symmetric_edges
from aqa_pipeline.core.pairs import pair_deltas
from aqa_pipeline.datasets.manifest import read_manifest
from aqa_pipeline.datasets.mtl_aqa import PROTOCOL, import_mtl_aqa
from aqa_pipeline.errors import DataError
from tests.datasets.test_importing import frames, touch
from tests.support.annotations import (
    MTL_CLIPS,
    Hostile,
    mtl_fields,
    real_annotations,
    write_mtl_aqa,
    write_pickle,
    written_out,
)


def test_rows_and_protocol(tmp_path: Path) -> None:
    imported = import_mtl_aqa(write_mtl_aqa(tmp_path))
    clips = imported.clips
    assert clips["clip_id"].tolist() == ["01_001", "01_002", "02_001", "02_007"]
    assert clips["video"].tolist() == ["01", "01", "02", "02"]
    assert clips["split"].tolist() == ["train", "test", "train", "test"]
    assert clips["end_frame"].tolist() == [210, 420, 210, 580]
    assert clips["score"].tolist() == [64.0, 80.0, 48.0, 45.0]
    assert clips["difficulty"].tolist() == [3.2, 3.2, 1.6, 1.6]
    assert set(clips["category"]) == {"diving"}
    assert clips["position"].tolist() == ["1"] * 4
    assert imported.protocol.source == PROTOCOL.source
    assert written_out(imported.protocol) == {
        "name": "mtl_aqa",
        "window_rule": "last",
        "window_frames": 103,
        "snippet_frames": 16,
        "snippet_starts": (0, 10, 20, 30, 40, 50, 60, 70, 80, 86),
        "pixels": "kinetics",
        "shift_frames": 3,
        "exemplar_key": ("difficulty",),
        "label_transform": "raw",
        "label_ranges": {},
        "score_range": 30.0,
        "epsilon": 30.0,
        "score_range_without_difficulty": 100.0,
        "per_category": False,
        "fold_columns": (),
        "rho_average": "fisher",
    }
    assert not imported.looked_up
    imported.write(tmp_path / "manifests" / "mtl_aqa.csv")
    assert read_manifest(tmp_path / "manifests" / "mtl_aqa.csv").exemplar_keys()[0] == (3.2,)


def test_judges_and_dive_numbers_of_a_derived_file(tmp_path: Path) -> None:
    write_mtl_aqa(tmp_path)
    richer = {
        key: {**fields, "judge_scores": [6.5, 7, 7, 7.5, 8, 8, 9], "dive_number": "207C"}
        for key, fields in MTL_CLIPS.items()
    }
    write_pickle(tmp_path / "final_annotations_dict_with_dive_number.pkl", richer)
    clips = import_mtl_aqa(tmp_path).clips
    judges = [clips.at[0, f"judge_{i}"] for i in range(1, 8)]
    assert judges == ["6.5", "7.0", "7.0", "7.5", "8.0", "8.0", "9.0"]
    assert clips["dive_number"].tolist() == ["207C"] * 4


def test_videos_are_files_or_frame_folders_with_and_without_the_zero(tmp_path: Path) -> None:
    write_mtl_aqa(tmp_path / "a")
    frames(tmp_path / "v" / "01", range(1, 4))
    touch(tmp_path / "v" / "2.mp4")
    imported = import_mtl_aqa(tmp_path / "a", tmp_path / "v")
    assert imported.looked_up
    assert imported.clips["video"].unique().tolist() == [
        str(tmp_path / "v" / "01"),
        str(tmp_path / "v" / "2.mp4"),
    ]


def without(name: str) -> dict[Any, Any]:
    fields = mtl_fields()
    del fields[name]
    return {**MTL_CLIPS, (1, 1): fields}


Break = Callable[[Path], Any]
BROKEN: dict[str, tuple[Break, str]] = {
    "no annotations": (
        lambda f: (f / "final_annotations_dict.pkl").unlink(),
        r"no final_annotations_dict_with_dive_number\.pkl or .* docs/datasets\.md",
    ),
    "no split": (lambda f: (f / "test_split_0.pkl").unlink(), r"no test_split_0\.pkl in it"),
    "not a pickle": (
        lambda f: (f / "final_annotations_dict.pkl").write_text("hello"),
        r"final_annotations_dict\.pkl: not a pickle",
    ),
    "cut short": (
        lambda f: (f / "train_split_0.pkl").write_bytes(
            (f / "train_split_0.pkl").read_bytes()[:-4]
        ),
        r"train_split_0\.pkl: not a pickle, or a damaged one",
    ),
    "a list": (
        lambda f: write_pickle(f / "final_annotations_dict.pkl", [1]),
        r"a pickled dict of clips is expected, found \[1\] \(list\)",
    ),
    "text keys": (lambda f: write_mtl_aqa(f, {"1_1": {}}), r"a pair \(video, clip\) is expected"),
    "text videos": (lambda f: write_mtl_aqa(f, {("a", 1): {}}), "has a text for its video"),
    "not fields": (
        lambda f: write_mtl_aqa(f, {**MTL_CLIPS, (1, 1): 3}),
        r"clip \(1, 1\): a dict of fields is expected, found 3",
    ),
    "no score": (
        lambda f: write_mtl_aqa(f, without("final_score")),
        r"clip \(1, 1\): field 'final_score' is missing; there are start_frame, ",
    ),
    "text score": (
        lambda f: write_mtl_aqa(f, {**MTL_CLIPS, (1, 1): mtl_fields("64")}),  # type: ignore[arg-type]
        r"clip \(1, 1\): final_score is '64' \(str\), not a finite number",
    ),
    "no number": (
        lambda f: write_mtl_aqa(f, {**MTL_CLIPS, (1, 1): mtl_fields(float("nan"))}),
        r"final_score is nan \(float\), not a finite number",
    ),
    "half a frame": (
        lambda f: write_mtl_aqa(f, {**MTL_CLIPS, (1, 1): mtl_fields(end_frame=210.5)}),
        r"end_frame is 210\.5 \(float\), not a whole number",
    ),
    "six judges": (
        lambda f: write_mtl_aqa(f, {**MTL_CLIPS, (1, 1): mtl_fields(judge_scores=[7] * 6)}),
        "judge_scores is .*, not a list of 7 numbers",
    ),
    "backwards": (
        lambda f: write_mtl_aqa(f, {**MTL_CLIPS, (1, 1): mtl_fields(end_frame=50)}),
        "clip 01_001: end_frame 50 is not after start_frame 100",
    ),
    "no difficulty": (
        lambda f: write_mtl_aqa(f, {**MTL_CLIPS, (1, 1): mtl_fields(difficulty=0.0)}),
        r"clip 01_001: difficulty 0\.0 is not above 0",
    ),
    "unknown clip": (
        lambda f: write_mtl_aqa(f, train=[(9, 9)]),
        r"clip \(9, 9\) is not in the annotations; are both files of one release",
    ),
    "clip twice": (lambda f: write_mtl_aqa(f, train=[(1, 1)] * 2), "stands twice in the list"),
    "both sides": (lambda f: write_mtl_aqa(f, test=[(1, 1)]), r"is in train_split_0\.pkl too"),
    "empty split": (lambda f: write_mtl_aqa(f, test=[]), "a pickled list of clips is expected"),
    "split of numbers": (
        lambda f: write_mtl_aqa(f, test=[3]),
        r"test_split_0\.pkl, entry 0: a pai",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_annotation_is_one_sentence(tmp_path: Path, name: str) -> None:
    write_mtl_aqa(tmp_path)
    break_it, sentence = BROKEN[name]
    break_it(tmp_path)
    with pytest.raises(DataError, match=sentence) as raised:
        import_mtl_aqa(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["final_annotations_dict.pkl", "train_split_0.pkl"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    write_mtl_aqa(tmp_path)
    write_pickle(tmp_path / name, {(1, 1): Hostile(tmp_path / "harm")})
    with pytest.raises(DataError, match=rf"{name}: refused, it asks for .*mkdir"):
        import_mtl_aqa(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_a_gap_in_the_frames_is_an_error(tmp_path: Path) -> None:
    write_mtl_aqa(tmp_path / "a")
    frames(tmp_path / "v" / "01", [1, 3])
    with pytest.raises(DataError, match="number 2 missing"):
        import_mtl_aqa(tmp_path / "a", tmp_path / "v")


def test_facts_of_the_real_annotations() -> None:
    clips = import_mtl_aqa(real_annotations("mtl_aqa")).clips
    assert clips["split"].value_counts().to_dict() == {"train": 1059, "test": 353}
    train = clips[clips["split"] == "train"]
    difficulties, group = np.unique(train["difficulty"].to_numpy(), return_inverse=True)
    assert len(difficulties) == 23
    assert (np.bincount(group).min(), np.bincount(group).max()) == (1, 248)
    deltas = pair_deltas(train["score"] / train["difficulty"], group)
    assert len(deltas) == 67_562
    edges = symmetric_edges(deltas, num_groups=16, score_range=30.0)
    assert edges[8:].tolist() == [0, 0.9118, 1.5, 2.5, 3.0, 4.5, 6.0, 8.5, 30]
    assert len(pair_deltas(train["score"], np.zeros(len(train)))) == 560_211
