"""Tiny annotation files in the official formats, and where the real ones are."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from aqa_pipeline.config import Protocol


def real_annotations(name: str) -> Path:
    """Folder of a data set's real annotations; skips the test without them."""
    root = os.environ.get("AQA_REAL_DATA", "")
    folder = Path(root) / "annotations" / name
    if not root or not folder.is_dir():
        pytest.skip(f"set AQA_REAL_DATA to a folder with annotations/{name} to check real data")
    return folder


def written_out(protocol: Protocol) -> dict[str, Any]:
    """Every setting of a protocol; not its source, which is prose."""
    settings = dataclasses.asdict(protocol)
    del settings["source"]
    return settings


def write_pickle(path: Path, value: Any) -> Path:
    """Protocol 2, as the official files of Python 2 have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol=2))
    return path


class Hostile:
    """A pickle of this makes a folder when a reader runs what it asks for."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def mtl_fields(score: float = 64.0, difficulty: float = 3.2, **extra: Any) -> dict[str, Any]:
    return {
        "start_frame": 100,
        "end_frame": 210,
        "difficulty": difficulty,
        "final_score": score,
        "position": 1,
        "armstand": 0,
        **extra,
    }


MTL_CLIPS = {
    (1, 1): mtl_fields(64.0),
    (1, 2): mtl_fields(80.0, start_frame=300, end_frame=420),
    (2, 1): mtl_fields(48.0, 1.6),
    (2, 7): mtl_fields(45.0, 1.6, start_frame=500, end_frame=580),
}


def write_mtl_aqa(
    folder: Path, clips: Any = MTL_CLIPS, *, train: Any = None, test: Any = None
) -> Path:
    write_pickle(folder / "final_annotations_dict.pkl", clips)
    write_pickle(folder / "train_split_0.pkl", [(2, 1), (1, 1)] if train is None else train)
    write_pickle(folder / "test_split_0.pkl", [(2, 7), (1, 2)] if test is None else test)
    return folder


AQA7_TRAIN = [[1, 1, 80.0], [1, 2, 60.5], [2, 1, 15.2], [5, 3, 70.2]]
AQA7_TEST = [[1, 3, 75.0], [6, 12, 90.0]]


def write_aqa7(folder: Path, *, train: Any = AQA7_TRAIN, test: Any = AQA7_TEST) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / "split_4_train_list.mat", {"consolidated_train_list": np.asarray(train)})
    savemat(folder / "split_4_test_list.mat", {"consolidated_test_list": np.asarray(test)})
    return folder


def jigsaws_labels() -> dict[str, list[int]]:
    """Eight trials a task, scores from 6 to 27."""
    return {
        f"{task}_{surgeon}{trial:03d}": [1 + (i * 3 + j) % 4 for j in range(5)] + [1 + i % 5]
        for task in ("Suturing", "Needle_Passing", "Knot_Tying")
        for i, (surgeon, trial) in enumerate((s, t) for s in "BCDE" for t in (1, 2))
    }


def jigsaws_splits() -> dict[str, list[list[str]]]:
    labels = sorted(jigsaws_labels())
    return {
        task: [[t for t in labels if t.startswith(task)][k::4] for k in range(4)]
        for task in ("Suturing", "Needle_Passing", "Knot_Tying")
    }


def write_jigsaws(folder: Path, *, labels: Any = None, splits: Any = None) -> Path:
    write_pickle(folder / "label.pkl", jigsaws_labels() if labels is None else labels)
    write_pickle(folder / "splits.pkl", jigsaws_splits() if splits is None else splits)
    return folder


def write_jigsaws_meta(folder: Path) -> Path:
    for task in ("Suturing", "Needle_Passing", "Knot_Tying"):
        lines = [
            f"{trial}\t\tN\t{sum(ratings)}\t\t" + "\t".join(map(str, ratings))
            for trial, ratings in jigsaws_labels().items()
            if trial.startswith(task)
        ]
        path = folder / task / f"meta_file_{task}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n\n")
    return folder


def dive(score: float = 81.18, action_type: str = "207c", **extra: Any) -> dict[str, Any]:
    return {
        "action_type": action_type,
        "start_frame": 1200,
        "end_frame": 1299,
        "dive_score": score,
        "difficulty": 3.3,
        "judge_scores": [8.0, 8.5, 8.0],
        **extra,
    }


DIVES = {
    ("WorldCup_final_r1", 0): dive(),
    ("WorldCup_final_r1", 10): dive(60.0),
    ("WorldCup_final_r1", 2): dive(70.0, "5253b"),
    ("Tokyo_2", 0): dive(50.0),
}


def write_finediving(
    folder: Path, dives: Any = DIVES, *, train: Any = None, test: Any = None
) -> Path:
    write_pickle(folder / "Annotations" / "FineDiving_coarse_annotation.pkl", dives)
    keys = list(DIVES)
    write_pickle(
        folder / "train_test_split" / "train_split.pkl", keys[:3] if train is None else train
    )
    write_pickle(folder / "train_test_split" / "test_split.pkl", keys[3:] if test is None else test)
    return folder
