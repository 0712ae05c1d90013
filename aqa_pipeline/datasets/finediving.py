"""FineDiving: 3000 dives with their action type (Xu et al., CVPR 2022).

Conventions
-----------
``FineDiving_coarse_annotation.pkl`` maps (competition, dive) to a dict of fields;
``FineDiving_fine-grained_annotation.pkl`` adds ``steps_transit_frames``, and
``fine-grained_annotation_aqa.pkl`` holds the same as lists. One of the three is enough.
Each dive lies at ``<competition>/<dive>`` as a frame folder or a file of its own, so
that a clip is the whole of it: 96 frames evenly spaced from its first to its last. The
annotated start and end are file numbers in the broadcast (the numbering of a frame
folder need not begin at 1); they are kept in columns of their own and not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from aqa_pipeline.config import Protocol
from aqa_pipeline.datasets.annotation import (
    Fields,
    Key,
    as_key,
    as_number,
    find_annotation,
    need_annotation,
    read_dict,
    sides_of_split,
)
from aqa_pipeline.datasets.importing import ImportedManifest, locate_videos
from aqa_pipeline.errors import DataError

PROTOCOL = Protocol(
    name="finediving",
    window_rule="even",
    window_frames=96,
    snippet_starts=(0, 10, 20, 30, 40, 50, 60, 70, 80),
    exemplar_key=("action_type",),
    source="FineDiving, official split; window and undivided scores as published with it",
)

COARSE = "FineDiving_coarse_annotation.pkl"
FINE = "FineDiving_fine-grained_annotation.pkl"
FINE_LISTS = "fine-grained_annotation_aqa.pkl"
_LIST_FIELDS = ("action_type", "dive_score", "difficulty", "steps_transit_frames", "frames_labels")


def import_finediving(annotations: Path, videos: Path | None = None) -> ImportedManifest:
    """Rows and protocol of FineDiving.

    Parameters
    ----------
    annotations : Path
        Folder of one of the annotations, ``train_split.pkl`` and ``test_split.pkl``, up
        to three folders deep.
    videos : Path or None
        Folder of the competitions; None: the videos are not looked up.

    Raises
    ------
    DataError
        If a file is missing or is not what it should be, or no video is found.
    """
    path = need_annotation(annotations, COARSE, FINE, FINE_LISTS)
    train, test = (need_annotation(annotations, f"{side}_split.pkl") for side in ("train", "test"))
    found = _read(path)
    sides = sides_of_split(train, test, known=found)
    steps = _steps(annotations)
    rows, places = [], {}
    for key in sorted(sides, key=lambda key: (str(key[0]), key[1])):
        row = _row(key, found[key], split=sides[key])
        if steps:
            row["steps_transit_frames"] = steps.get(key, "")
        rows.append(row)
        places[row["clip_id"]] = [f"{key[0]}/{key[1]}"]
    where, missing = locate_videos(videos, places)
    return ImportedManifest.of(path, rows, protocol=PROTOCOL, videos=where, missing=missing)


def _read(path: Path) -> dict[Key, Fields]:
    """Fields of each dive, whichever of the annotations it is."""
    found = {}
    for raw_key, values in read_dict(path).items():
        key = as_key(f"{path}, key", raw_key)
        if isinstance(values, list | tuple):
            if len(values) != len(_LIST_FIELDS):
                raise DataError(
                    f"{path}, dive {key}: {len(values)} values, expected {', '.join(_LIST_FIELDS)}"
                )
            values = dict(zip(_LIST_FIELDS, values, strict=True))
        found[key] = Fields(f"{path}, dive {key}", values)
    return found


def _steps(annotations: Path) -> dict[Key, str]:
    """Frames at which one step of a dive turns into the next, where they are annotated."""
    path = find_annotation(annotations, FINE, FINE_LISTS)
    if path is None:
        return {}
    steps = {}
    for key, fields in _read(path).items():
        value = fields.value("steps_transit_frames")
        items = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(items, list | tuple):
            raise DataError(f"{fields.place}: steps_transit_frames is no list")
        steps[key] = " ".join(map(str, items))
    return steps


def _row(key: Key, fields: Fields, *, split: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "clip_id": f"{key[0]}_{key[1]}",
        "score": fields.number("dive_score"),
        "split": split,
        "category": "diving",
        "difficulty": fields.number("difficulty"),
        "action_type": fields.text("action_type"),
        "competition": key[0],
    }
    for end in ("start_frame", "end_frame"):
        if end in fields:
            row[f"annotated_{end}"] = fields.integer(end)
    return row | _marks(fields)


def _marks(fields: Fields) -> dict[str, float | str]:
    """``judge_1``, ``judge_2``, ...; as one text where they are not all numbers.

    Synchronised dives have more judges than others, so the count is not checked.
    """
    value: Any = fields.values.get("judge_scores")
    items = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(items, list | tuple):
        return {}
    try:
        marks = [as_number(f"{fields.place}: judge_scores", item) for item in items]
    except DataError:
        return {"judge_scores": " ".join(map(str, items))}
    return {f"judge_{i}": mark for i, mark in enumerate(marks, start=1)}
