from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from aqa_pipeline.datasets.aqa7 import CLASSES, PROTOCOL, import_aqa7
from aqa_pipeline.errors import DataError
from tests.datasets.test_importing import frames, touch
from tests.support.annotations import AQA7_TRAIN, real_annotations, write_aqa7, written_out


def test_rows_and_protocol(tmp_path: Path) -> None:
    imported = import_aqa7(write_aqa7(tmp_path))
    clips = imported.clips
    assert clips["clip_id"].tolist() == [
        "diving_001", "diving_002", "diving_003", "gym_vault_001", "sync_diving_3m_003",
        "sync_diving_10m_012",
    ]  # fmt: skip
    assert clips["split"].tolist() == ["train", "train", "test", "train", "train", "test"]
    assert clips["score"].tolist() == [80.0, 60.5, 75.0, 15.2, 70.2, 90.0]
    assert clips["video"].tolist()[-1] == "sync_diving_10m-out/012"
    assert imported.protocol.source == PROTOCOL.source
    assert written_out(imported.protocol) == {
        "name": "aqa7",
        "window_rule": "first",
        "window_frames": 103,
        "snippet_frames": 16,
        "snippet_starts": (0, 10, 20, 30, 40, 50, 60, 70, 80, 86),
        "pixels": "kinetics",
        "shift_frames": 0,
        "exemplar_key": ("category",),
        "label_transform": "range",
        "label_ranges": {
            "diving": (21.6, 102.6),
            "gym_vault": (12.3, 16.87),
            "ski_big_air": (8.0, 50.0),
            "snowboard_big_air": (8.0, 50.0),
            "sync_diving_3m": (46.2, 104.88),
            "sync_diving_10m": (49.8, 99.36),
        },
        "score_range": 100.0,
        "epsilon": 100.0,
        "score_range_without_difficulty": None,
        "per_category": True,
        "fold_columns": (),
        "rho_average": "fisher",
    }


def test_samples_are_files_or_frame_folders(tmp_path: Path) -> None:
    write_aqa7(tmp_path / "a")
    frames(tmp_path / "v" / "diving-out" / "001", range(1, 4))
    touch(tmp_path / "v" / "gym_vault" / "001.avi")
    imported = import_aqa7(tmp_path / "a", tmp_path / "v")
    assert imported.clips["video"].tolist()[0] == str(tmp_path / "v" / "diving-out" / "001")
    assert imported.clips["video"].tolist()[3] == str(tmp_path / "v" / "gym_vault" / "001.avi")
    assert len(imported.missing) == 4


def train_of(*row: float) -> Callable[[Path], Any]:
    return lambda folder: write_aqa7(folder, train=[*AQA7_TRAIN, list(row)])


TRAIN = "split_4_train_list.mat"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no list": (lambda f: (f / TRAIN).unlink(), r"train_list\.mat in it, nor in the folders"),
    "not matlab": (lambda f: (f / TRAIN).write_text("1,2,3"), "not a MATLAB file of version 4"),
    "empty": (lambda f: (f / TRAIN).write_bytes(b""), "not a MATLAB file of version 4 to 7"),
    "cut short": (
        lambda f: (f / TRAIN).write_bytes((f / TRAIN).read_bytes()[:150]),
        "not a MATLAB file of version 4 to 7, or a damaged one",
    ),
    "no variable": (
        lambda f: savemat(f / TRAIN, {"train_list": np.ones((2, 3))}),
        "no variable consolidated_train_list; there is train_list",
    ),
    "two columns": (lambda f: write_aqa7(f, train=[[1, 2]]), r"has shape \(1, 2\) of .*three numb"),
    "no rows": (lambda f: write_aqa7(f, train=np.empty((0, 3))), r"has shape \(0, "),
    "text": (lambda f: write_aqa7(f, train=[["a", "b", "c"]]), "rows of three numbers"),
    "trampoline": (train_of(7, 1, 50), r"row 5: class 7 is trampoline, .* 103 frames"),
    "class 8": (train_of(8, 1, 50), "row 5: class 8 is none of the six classes"),
    "class 0": (train_of(0, 1, 50), "row 5: class 0 is none of the six classes"),
    "half a class": (train_of(1.5, 1, 50), r"class 1\.5 is none of the six"),
    "half a sample": (train_of(1, 7.5, 50), r"sample 7\.5 is not a whole number"),
    "sample 0": (train_of(1, 0, 50), "row 5: sample 0 is not a whole number >= 1"),
    "no number": (train_of(1, 7, np.nan), "row 5: a value is not a finite number"),
    "sample twice": (train_of(1, 2, 50), "row 5: sample 2 of diving stands already in the train"),
    "both sides": (
        train_of(1, 3, 50),
        "row 1: sample 3 of diving stands already in the train list",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_list_is_one_sentence(tmp_path: Path, name: str) -> None:
    write_aqa7(tmp_path)
    break_it, sentence = BROKEN[name]
    break_it(tmp_path)
    with pytest.raises(DataError, match=rf"split_4_.*{sentence}") as raised:
        import_aqa7(tmp_path)
    assert "\n" not in str(raised.value)


def test_facts_of_the_real_lists() -> None:
    clips = import_aqa7(real_annotations("aqa7")).clips
    for split, counts in {
        "train": [300, 120, 120, 140, 60, 63],
        "test": [70, 56, 55, 66, 28, 28],
    }.items():
        categories = clips["category"][clips["split"] == split].tolist()
        assert [categories.count(name) for name in CLASSES] == counts
    # The published ranges are the extremes of training and test together.
    scores = clips.groupby("category")["score"]
    assert {name: (scores.min()[name], scores.max()[name]) for name in CLASSES} == CLASSES
