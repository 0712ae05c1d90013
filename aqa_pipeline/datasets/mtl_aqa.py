"""MTL-AQA: 1412 dives of 15 broadcasts, with difficulty (Parmar and Morris, CVPR 2019).

Conventions
-----------
``final_annotations_dict.pkl`` maps (video, clip) to a dict of fields; files derived from
it add ``judge_scores`` (seven) and ``dive_number``. ``train_split_0.pkl`` and
``test_split_0.pkl`` list such keys. Videos lie at ``<video:02d>`` as frame folders or
files. ``end_frame`` is used as a 0-based end; ``start_frame`` is kept, but the window
rule ignores it, as the published program does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aqa_pipeline.config import Protocol
from aqa_pipeline.datasets.annotation import (
    Fields,
    Key,
    as_key,
    need_annotation,
    read_dict,
    sides_of_split,
)
from aqa_pipeline.datasets.importing import ImportedManifest, locate_videos
from aqa_pipeline.errors import DataError

PROTOCOL = Protocol(
    name="mtl_aqa",
    window_rule="last",
    shift_frames=3,
    exemplar_key=("difficulty",),
    label_transform="raw",
    score_range=30.0,
    epsilon=30.0,
    score_range_without_difficulty=100.0,
    source="MTL-AQA, official split 0; window, labels and groups as in the published CoRe program",
)

#: Richest first: the derived files hold all the official one does.
ANNOTATIONS = (
    "final_annotations_dict_with_dive_number.pkl",
    "augmented_final_annotations_dict.pkl",
    "final_annotations_dict.pkl",
)

_USED = ("start_frame", "end_frame", "final_score", "difficulty", "judge_scores")


def import_mtl_aqa(annotations: Path, videos: Path | None = None) -> ImportedManifest:
    """Rows and protocol of MTL-AQA.

    Parameters
    ----------
    annotations : Path
        Folder of one of :data:`ANNOTATIONS`, ``train_split_0.pkl`` and
        ``test_split_0.pkl``, up to three folders deep.
    videos : Path or None
        Folder of the broadcasts; None: they are not looked up.

    Raises
    ------
    DataError
        If a file is missing or is not what it should be, or no video is found.
    """
    path = need_annotation(annotations, *ANNOTATIONS)
    train, test = (
        need_annotation(annotations, f"{side}_split_0.pkl") for side in ("train", "test")
    )
    found = {_key(path, key): fields for key, fields in read_dict(path).items()}
    sides = sides_of_split(train, test, known=found)
    rows, places = [], {}
    for key in sorted(sides):
        row = _row(key, Fields(f"{path}, clip {key}", found[key]), split=sides[key])
        rows.append(row)
        places[row["clip_id"]] = [f"{key[0]:02d}", f"{key[0]}"]
    where, missing = locate_videos(videos, places)
    return ImportedManifest.of(path, rows, protocol=PROTOCOL, videos=where, missing=missing)


def _key(path: Path, value: Any) -> Key:
    key = as_key(f"{path}, key", value)
    if isinstance(key[0], str):
        raise DataError(f"{path}: clip {key} has a text for its video; a number is expected")
    return key


def _row(key: Key, fields: Fields, *, split: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "clip_id": f"{key[0]:02d}_{key[1]:03d}",
        "start_frame": fields.integer("start_frame"),
        "end_frame": fields.integer("end_frame"),
        "score": fields.number("final_score"),
        "split": split,
        "category": "diving",
        "difficulty": fields.number("difficulty"),
    }
    if "judge_scores" in fields:
        judges = fields.numbers("judge_scores", count=7)
        row |= {f"judge_{i}": score for i, score in enumerate(judges, start=1)}
    return row | fields.plain(without=_USED)
