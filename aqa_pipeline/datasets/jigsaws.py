"""JIGSAWS: 103 trials of three surgical tasks (Gao et al., M2CAI 2014).

Conventions
-----------
Ratings come from ``label.pkl``, a dict from trial to six ratings of 1 to 5, or from the
official ``meta_file_<Task>.txt``: trial, skill, total, six ratings. The score is the sum
of the six, 6 to 30. ``splits.pkl`` maps a task to four lists of trials; list k is the
test part of fold k. Of each trial the left view is used, ``<trial>_capture1``.

Without ``splits.pkl`` the folds are made here: four seeded ones with the same spread of
scores in each task, or the official leave-one-supertrial-out, five folds by the number
at the end of a trial's name. The protocol's ``source`` says which.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from aqa_pipeline.config import Protocol, SplitConfig
from aqa_pipeline.datasets.annotation import as_numbers, find_annotation, read_dict
from aqa_pipeline.datasets.importing import ImportedManifest, locate_videos
from aqa_pipeline.datasets.split import fold_numbers
from aqa_pipeline.errors import DataError
from aqa_pipeline.tables import read_bytes

logger = logging.getLogger(__name__)

TASKS = ("Suturing", "Needle_Passing", "Knot_Tying")
FoldScheme = Literal["published", "seeded", "supertrial"]
_NUM_FOLDS = 4
_NUM_RATINGS = 6
_TRIAL = re.compile(rf"(?P<task>{'|'.join(TASKS)})_(?P<surgeon>[A-Z])(?P<supertrial>\d{{3}})")

PROTOCOL = Protocol(
    name="jigsaws",
    window_rule="even",
    window_frames=160,
    snippet_starts=tuple(range(0, 160, 16)),
    exemplar_key=("category",),
    score_range=24.0,
    epsilon=30.0,
    per_category=True,
    fold_columns=tuple(f"fold_{k}" for k in range(1, _NUM_FOLDS + 1)),
    rho_average="fisher",
    source="JIGSAWS, left view, sum of six ratings; 160 evenly spaced frames (Sec. 4.1)",
)


def import_jigsaws(
    annotations: Path,
    videos: Path | None = None,
    *,
    folds: FoldScheme | None = None,
    seed: int = SplitConfig.seed,
) -> ImportedManifest:
    """Rows and protocol of JIGSAWS, all tasks in one manifest.

    Parameters
    ----------
    annotations : Path
        Folder of ``label.pkl`` and ``splits.pkl``, or of the meta files, up to three
        folders deep. If ratings come from both, they have to agree.
    videos : Path or None
        Folder of the trials; None: the videos are not looked up.
    folds : {"published", "seeded", "supertrial"} or None
        None: published where ``splits.pkl`` is there, else seeded.
    seed : int
        For seeded folds.

    Raises
    ------
    DataError
        If a file is missing or is not what it should be, or no video is found.
    """
    source, trials = _read_ratings(annotations)
    rows, places = [], {}
    for trial in sorted(trials):
        match = _TRIAL.fullmatch(trial)
        if match is None:
            raise DataError(
                f"{source}: trial {trial!r} is not named like Suturing_B001 (task, surgeon, "
                "three digits)"
            )
        row: dict[str, Any] = {
            "clip_id": trial,
            "score": sum(trials[trial].ratings),
            "category": match["task"],
            "surgeon": match["surgeon"],
            "supertrial": int(match["supertrial"]),
        }
        if trials[trial].skill:
            row["skill"] = trials[trial].skill
        row |= {f"rating_{i}": rating for i, rating in enumerate(trials[trial].ratings, start=1)}
        rows.append(row)
        name = f"{trial}_capture1"
        places[trial] = [name, f"{match['task']}/{name}", f"{match['task']}/video/{name}"]
    splits = find_annotation(annotations, "splits.pkl")
    if folds is None:
        folds = "seeded" if splits is None else "published"
    if folds == "published":
        if splits is None:
            raise DataError(f"{annotations}: no splits.pkl in it, which holds the published folds")
        rows = _add_published_folds(rows, splits)
        note = f"published folds of {splits.name}"
    elif folds == "supertrial":
        _add_folds(rows, [row["supertrial"] for row in rows])
        note = "folds: leave one supertrial out"
    else:
        _add_seeded_folds(rows, seed)
        note = f"folds made here with seed {seed}, not the published ones"
    columns = tuple(dict.fromkeys(name for row in rows for name in row if name.startswith("fold_")))
    protocol = dataclasses.replace(
        PROTOCOL, fold_columns=columns, source=f"{PROTOCOL.source}; {note}"
    )
    where, missing = locate_videos(videos, {row["clip_id"]: places[row["clip_id"]] for row in rows})
    return ImportedManifest.of(source, rows, protocol=protocol, videos=where, missing=missing)


@dataclasses.dataclass(frozen=True)
class _Trial:
    ratings: tuple[int, ...]
    skill: str = ""


def _read_ratings(annotations: Path) -> tuple[Path, dict[str, _Trial]]:
    pickled = find_annotation(annotations, "label.pkl", "labels.pkl")
    metas = [find_annotation(annotations, f"meta_file_{task}.txt") for task in TASKS]
    official: dict[str, _Trial] = {}
    for meta in metas:
        if meta is not None:
            official |= _read_meta(meta)
    if pickled is None:
        if not official:
            raise DataError(
                f"{annotations}: neither label.pkl nor meta_file_Suturing.txt (or of another task) "
                "in it; docs/datasets.md says where to get them"
            )
        return annotations, official
    trials = {}
    for trial, ratings in read_dict(pickled).items():
        place = f"{pickled}, trial {trial}"
        checked = _check_ratings(place, as_numbers(place, ratings, count=_NUM_RATINGS))
        known = official.get(str(trial))
        if known is not None and known.ratings != checked:
            raise DataError(
                f"{place}: ratings {checked}, but its meta file says {known.ratings}; remove the "
                "file that is wrong"
            )
        trials[str(trial)] = _Trial(checked, known.skill if known else "")
    return pickled, trials


def _check_ratings(place: str, ratings: list[float]) -> tuple[int, ...]:
    if any(rating not in range(1, 6) for rating in ratings):
        told = ", ".join(f"{rating:g}" for rating in ratings)
        raise DataError(f"{place}: ratings {told}; each is a whole number from 1 to 5")
    return tuple(int(rating) for rating in ratings)


def _read_meta(path: Path) -> dict[str, _Trial]:
    trials: dict[str, _Trial] = {}
    for number, line in enumerate(read_bytes(path).decode("latin1").splitlines(), start=1):
        place = f"{path}, line {number}"
        words = line.split()
        if not words:
            continue
        if len(words) != 3 + _NUM_RATINGS:
            raise DataError(
                f"{place}: {len(words)} values; expected trial, skill, total and six ratings"
            )
        try:
            total, *ratings = map(float, words[2:])
        except ValueError:
            raise DataError(f"{place}: total and ratings must be numbers: {line!r}") from None
        if words[0] in trials:
            raise DataError(f"{place}: trial {words[0]} stands already above")
        checked = _check_ratings(place, ratings)
        if total != sum(checked):
            logger.warning(
                "%s: the total is %g, but the ratings add up to %d, which is taken",
                place,
                total,
                sum(checked),
            )
        trials[words[0]] = _Trial(checked, words[1])
    if not trials:
        raise DataError(f"{path}: no trial in it")
    return trials


def _add_published_folds(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """The rows that are in the published folds, with their columns."""
    fold: dict[str, int] = {}
    known = {row["clip_id"] for row in rows}
    tasks = {row["category"] for row in rows}
    for task, lists in read_dict(path).items():
        if task not in TASKS:
            raise DataError(f"{path}: task {task!r} is none of {', '.join(TASKS)}")
        if not isinstance(lists, list | tuple) or len(lists) != _NUM_FOLDS:
            raise DataError(f"{path}, task {task}: four lists of trials are expected")
        for k, trials in enumerate(lists):
            if not isinstance(trials, list | tuple) or not all(isinstance(t, str) for t in trials):
                raise DataError(f"{path}, task {task}, fold {k + 1}: a list of trials is expected")
            for trial in trials:
                if trial in fold:
                    raise DataError(
                        f"{path}: trial {trial} stands twice; the folds must not overlap"
                    )
                if task in tasks and trial not in known:
                    raise DataError(f"{path}: trial {trial} has no ratings")
                fold[trial] = k
    rated = [row for row in rows if row["clip_id"] in fold]
    if len(rated) < len(rows):
        first = next(row["clip_id"] for row in rows if row["clip_id"] not in fold)
        logger.warning(
            "%s: %d of %d rated trials are in no fold and left out, %s first",
            path,
            len(rows) - len(rated),
            len(rows),
            first,
        )
    if not rated:
        raise DataError(f"{path}: none of the {len(rows)} rated trials is in it")
    _add_folds(rated, [fold[row["clip_id"]] + 1 for row in rated])
    return rated


def _add_seeded_folds(rows: list[dict[str, Any]], seed: int) -> None:
    table = pd.DataFrame([{k: row[k] for k in ("clip_id", "score", "category")} for row in rows])
    number = np.zeros(len(table), dtype=np.int64)
    for _, task in table.groupby("category"):
        number[task.index] = fold_numbers(task, num_folds=_NUM_FOLDS, seed=seed)
    _add_folds(rows, (number + 1).tolist())


def _add_folds(rows: list[dict[str, Any]], number: Sequence[int]) -> None:
    for k in sorted(set(number)):
        for row, own in zip(rows, number, strict=True):
            row[f"fold_{k}"] = "test" if own == k else "train"
