"""AQA-7: 1106 clips of six sports, the lists of split 4 (Parmar and Morris, WACV 2019).

Conventions
-----------
``split_4_train_list.mat`` and ``split_4_test_list.mat`` hold one matrix each, a row a
clip: class 1..6, number of the sample in its class, final score. Samples lie at
``<class>-out/<sample:03d>`` as frame folders or files, 103 frames each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aqa_pipeline.config import Protocol
from aqa_pipeline.datasets.annotation import need_annotation
from aqa_pipeline.datasets.importing import ImportedManifest, locate_videos
from aqa_pipeline.errors import DataError

#: Class number, minus one, -> name and the published range of scores, in points. The
#: ranges are the extremes of training and test clips together.
CLASSES: dict[str, tuple[float, float]] = {
    "diving": (21.6, 102.6),
    "gym_vault": (12.3, 16.87),
    "ski_big_air": (8.0, 50.0),
    "snowboard_big_air": (8.0, 50.0),
    "sync_diving_3m": (46.2, 104.88),
    "sync_diving_10m": (49.8, 99.36),
}

PROTOCOL = Protocol(
    name="aqa7",
    window_rule="first",
    exemplar_key=("category",),
    label_transform="range",
    label_ranges=CLASSES,
    score_range=100.0,
    epsilon=100.0,
    per_category=True,
    rho_average="fisher",
    source="AQA-7, split 4; window, labels and published ranges as in the published CoRe program",
)


def import_aqa7(annotations: Path, videos: Path | None = None) -> ImportedManifest:
    """Rows and protocol of AQA-7.

    Parameters
    ----------
    annotations : Path
        Folder of the two ``.mat`` lists, up to three folders deep.
    videos : Path or None
        Folder of the class folders; None: the videos are not looked up.

    Raises
    ------
    DataError
        If a list is missing or is not what it should be, names a class above 6, or no
        video is found.
    """
    names = list(CLASSES)
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    places = {}
    for split in ("train", "test"):
        path = need_annotation(annotations, f"split_4_{split}_list.mat")
        for line, (number, sample, score) in enumerate(_read_list(path, split), start=1):
            category = _class_name(f"{path}, row {line}", number, names)
            if sample != int(sample) or sample < 1:
                raise DataError(f"{path}, row {line}: sample {sample:g} is not a whole number >= 1")
            key = (int(number), int(sample))
            if key in rows:
                raise DataError(
                    f"{path}, row {line}: sample {key[1]} of {category} stands already in the "
                    f"{rows[key]['split']} list"
                )
            clip_id = f"{category}_{key[1]:03d}"
            rows[key] = {
                "clip_id": clip_id,
                "score": float(score),
                "split": split,
                "category": category,
            }
            sample_places = (f"{category}{out}/{key[1]:03d}" for out in ("-out", ""))
            places[clip_id] = list(sample_places)
    ordered = [rows[key] for key in sorted(rows)]
    where, missing = locate_videos(
        videos, {row["clip_id"]: places[row["clip_id"]] for row in ordered}
    )
    return ImportedManifest.of(
        annotations, ordered, protocol=PROTOCOL, videos=where, missing=missing
    )


def _class_name(place: str, number: float, names: list[str]) -> str:
    if number == 7:
        raise DataError(
            f"{place}: class 7 is trampoline, whose clips are far longer than the 103 frames of "
            "the others, so that the protocol leaves it out; take the lists of split 4 with six "
            "classes, or import it as data of your own"
        )
    if number not in range(1, len(names) + 1):
        raise DataError(f"{place}: class {number:g} is none of the six classes 1 to 6")
    return names[int(number) - 1]


def _read_list(path: Path, split: str) -> npt.NDArray[np.float64]:
    """Class, sample and score of each clip, shape=(n, 3)."""
    from scipy.io import loadmat  # half a second that the other importers do without

    variable = f"consolidated_{split}_list"
    try:
        content = loadmat(path, appendmat=False)
    except Exception as error:
        # A damaged file raises nearly anything, and one of version 7.3 NotImplementedError.
        raise DataError(
            f"{path}: not a MATLAB file of version 4 to 7, or a damaged one "
            f"({type(error).__name__}: {error})"
        ) from error
    if variable not in content:
        there = ", ".join(name for name in content if not name.startswith("__")) or "none"
        raise DataError(f"{path}: no variable {variable}; there is {there}")
    table: npt.NDArray[Any] = content[variable]
    if table.ndim != 2 or table.shape[1] != 3 or not len(table) or table.dtype.kind not in "iuf":
        raise DataError(
            f"{path}: {variable} has shape {table.shape} of {table.dtype}; rows of three numbers "
            "are expected: class, sample, score"
        )
    numbers = table.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if len(bad):
        raise DataError(f"{path}, row {bad[0] + 1}: a value is not a finite number")
    return numbers
